//! Variables with their initial bytes.

use super::body::{Names, number_bits};
use super::modifiers::{Decoded, mistake};
use crate::ast::{self, Init};
use crate::program::{Target, Variable};
use crate::types::Space;

/// A variable with its initial bytes.
pub(crate) fn variable(v: &ast::Variable<'_>, names: &Names) -> Decoded<Variable> {
    let size = v.size();
    let dynamic = v.space == Space::Shared && v.is_array && v.count == 0;
    let mut made = Variable {
        name: v.name.to_string(),
        space: v.space,
        size,
        align: v.align,
        dynamic,
        init: Vec::new(),
        relocations: Vec::new(),
        module_scope: true,
    };
    let step = v.ty.bytes();
    for i in v.init.iter().flatten() {
        let at = made.init.len() as u64;
        if at + u64::from(step) > size {
            return mistake(format!("Too many initializers for '{}'", v.name));
        }
        let bits = match i {
            Init::Value(n) => number_bits(*n, v.ty),
            Init::Address(name, plus) => {
                let target = match (names.variables.get(*name), names.functions.get(*name)) {
                    (Some(k), _) => Target::Variable(*k),
                    (_, Some(k)) => Target::Function(*k),
                    _ => return mistake(format!("Unknown symbol '{name}'")),
                };
                made.relocations.push((at, step.min(8), target, *plus));
                0
            }
        };
        made.init
            .extend(&bits.to_le_bytes()[..step.min(8) as usize]);
        made.init
            .resize(usize::try_from(at).unwrap_or(0) + step as usize, 0);
    }
    Ok(made)
}
