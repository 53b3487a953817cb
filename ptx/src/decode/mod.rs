//! The syntax tree to decoded instructions: names, widths, labels, places in the frame.

pub(crate) mod bits;
pub(crate) mod body;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod data;
pub(crate) mod float;
pub(crate) mod function;
pub(crate) mod integer;
pub(crate) mod logic;
pub(crate) mod modifiers;
pub(crate) mod together;
pub(crate) mod variable;
pub(crate) mod video;
