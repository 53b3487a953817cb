//! The modifiers of an instruction, and the errors in it.

use crate::types::Type;

/// The reasons why an instruction does not decode.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// In ptxas's wording, one line each.
    Mistakes(Vec<String>),
    /// Valid, but not implemented: reported when the kernel is looked up.
    Unsupported,
}

pub(crate) type Decoded<T = ()> = Result<T, Wrong>;

pub(crate) fn mistake<T>(text: impl Into<String>) -> Decoded<T> {
    Err(Wrong::Mistakes(vec![text.into()]))
}

/// The modifiers of an instruction that have not been taken yet.
#[derive(Debug)]
pub(crate) struct Modifiers<'a> {
    pub(super) left: Vec<&'a str>,
    pub(super) name: &'a str,
}

impl<'a> Modifiers<'a> {
    /// Takes a modifier if it is present.
    pub(crate) fn has(&mut self, word: &str) -> bool {
        let at = self.left.iter().position(|m| *m == word);
        at.map(|k| self.left.remove(k)).is_some()
    }

    /// Takes the first of these that is present.
    pub(crate) fn one_of(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().find(|w| self.has(w)).copied()
    }

    /// Takes the next modifier if it is one of these.
    pub(crate) fn next_of(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let first = *self.left.first()?;
        let w = words.iter().find(|w| **w == first)?;
        self.left.remove(0);
        Some(w)
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Decoded<Type> {
        match self.optional_type() {
            Some(t) => Ok(t),
            None => mistake(format!(
                "Unexpected instruction types specified for '{}'",
                self.name
            )),
        }
    }

    pub(crate) fn optional_type(&mut self) -> Option<Type> {
        let at = self.left.iter().position(|m| Type::parse(m).is_some())?;
        Type::parse(self.left.remove(at))
    }

    /// Checks that the type is one of these.
    pub(crate) fn check(&self, t: Type, allowed: &[Type]) -> Decoded {
        if allowed.contains(&t) {
            Ok(())
        } else {
            self.unexpected()
        }
    }

    pub(crate) fn unexpected<T>(&self) -> Decoded<T> {
        mistake(format!(
            "Unexpected instruction types specified for '{}'",
            self.name
        ))
    }

    /// Checks that nothing is left.
    pub(crate) fn done(&self) -> Decoded {
        match self.left.first() {
            None => Ok(()),
            Some(m) => mistake(format!(
                "Illegal modifier '.{m}' for instruction '{}'",
                self.name
            )),
        }
    }

    /// Checks that nothing is left but hints, which are dropped.
    pub(crate) fn drop_hints(&mut self) {
        self.left
            .retain(|m| !(m.starts_with("L1::") || m.starts_with("L2::")));
    }
}
