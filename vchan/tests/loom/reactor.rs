//! No reactor: the models' channels are on none.

pub(crate) mod token {
    #[derive(Debug, Clone, Copy)]
    pub struct Token;
}
