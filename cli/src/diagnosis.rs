//! The findings of the commands `doctor`.

use serde::Serialize;

/// The outcome of a [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All is well.
    Good,
    /// It works, but could do better.
    Remark,
    /// It is not needed here.
    Absent,
    /// It is needed and does not work.
    Bad,
}

/// One line of a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The thing that was checked.
    pub name: &'static str,
    /// Whether the verdict is not bad.
    pub ok: bool,
    /// The outcome.
    pub verdict: Verdict,
    /// The state it was found in.
    pub found: String,
    /// The remedy; empty where there is nothing to do.
    pub advice: String,
}

impl Check {
    fn new(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name,
            ok: verdict != Verdict::Bad,
            verdict,
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// All is well.
    pub fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Good, found, "")
    }

    /// It is not needed here.
    pub fn absent(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Absent, found, "")
    }

    /// It works, but could do better.
    pub fn remark(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Verdict::Remark, found, advice)
    }

    /// It is needed and does not work.
    pub fn bad(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Verdict::Bad, found, advice)
    }

    /// For people, without the last line's end: a line, and a second one where there is something to do.
    pub fn lines(&self) -> String {
        let Self {
            name,
            found,
            advice,
            ..
        } = self;
        let mark = match self.verdict {
            Verdict::Good => '✔',
            Verdict::Remark => '!',
            Verdict::Absent => '–',
            Verdict::Bad => '✘',
        };
        match advice.is_empty() {
            true => format!("{mark} {name}: {found}"),
            false => format!("{mark} {name}: {found}\n    → {advice}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_bad_is_not_ok_and_advice_is_a_line_of_its_own() {
        let good = Check::good("Xen", "dom0");
        assert_eq!((good.ok, &*good.lines()), (true, "✔ Xen: dom0"));
        let absent = Check::absent("Xen", "not needed here");
        assert_eq!(
            (absent.ok, &*absent.lines()),
            (true, "– Xen: not needed here")
        );
        let remark = Check::remark("driver", "old", "update it");
        assert_eq!(
            (remark.ok, &*remark.lines()),
            (true, "! driver: old\n    → update it")
        );
        let bad = Check::bad("driver", "none", "install it");
        assert_eq!(
            (bad.ok, &*bad.lines()),
            (false, "✘ driver: none\n    → install it")
        );
        let json = serde_json::to_string(&bad).unwrap();
        assert_eq!(
            json,
            r#"{"name":"driver","ok":false,"verdict":"bad","found":"none","advice":"install it"}"#
        );
    }
}
