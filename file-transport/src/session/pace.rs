//! The interval between looks at the directory. Pure.

use std::time::Duration;

/// The pause while something moves.
pub const FASTEST: Duration = Duration::from_micros(50);

/// The pause when nothing has moved for a while.
pub const SLOWEST: Duration = Duration::from_millis(50);

/// The pause before the next look when nothing has moved for `quiet`: an eighth of it, so news is
/// noticed at most an eighth later than possible, and looks soon become rare.
pub fn pause(quiet: Duration) -> Duration {
    (quiet / 8).clamp(FASTEST, SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer_and_cost_an_eighth_at_most() {
        assert_eq!(pause(Duration::ZERO), FASTEST);
        assert_eq!(pause(Duration::from_millis(80)), Duration::from_millis(10));
        assert_eq!(pause(Duration::from_secs(3600)), SLOWEST);
        let (mut quiet, mut looks) = (Duration::ZERO, 0);
        while quiet < Duration::from_secs(1) {
            quiet += pause(quiet);
            looks += 1;
        }
        assert!(looks < 90, "{looks} looks in the first second");
    }
}
