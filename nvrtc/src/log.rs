//! The compiler's words, safe for a terminal and for whoever keeps them.

/// At most `most` bytes of a compiler's log: whole characters, no control characters but newlines and tabs. What is
/// left out at the end is counted in a last line, which fits as well.
pub fn clean(log: &[u8], most: usize) -> String {
    // NVRTC ends it with a NUL.
    let end = log
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let log = &log[..end];
    // Before the copy, so that a long log costs no more than a short one; a replaced byte takes three.
    let text = String::from_utf8_lossy(&log[..end.min(most)]);
    let kept = |c: char| !c.is_control() || c == '\n' || c == '\t';
    let text: String = text
        .chars()
        .map(|c| if kept(c) { c } else { ' ' })
        .collect();
    if end <= most && text.len() <= most {
        return text;
    }
    let note = format!("\n(a log of {end} bytes, cut)\n");
    let mut cut = text.len().min(most.saturating_sub(note.len()));
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut text = text;
    text.truncate(cut);
    if note.len() <= most {
        text.push_str(&note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_and_what_controls_a_terminal_goes() {
        assert_eq!(
            clean(b"a.cu(1): error\n\tx\x1b[2J\r\x07\0", 100),
            "a.cu(1): error\n\tx [2J  "
        );
        assert_eq!(clean(b"\0", 10), "");
        assert_eq!(clean(b"", 10), "");
        assert_eq!(clean("\u{85}é\u{9b}".as_bytes(), 10), " é ");
    }

    #[test]
    fn a_long_log_is_cut_at_a_character() {
        let log = "é".repeat(1000);
        for most in [0, 1, 10, 50, 51, 1000, 1999] {
            let cut = clean(log.as_bytes(), most);
            assert!(cut.len() <= most, "{most}: {}", cut.len());
            assert!(
                most < 50 || cut.ends_with("(a log of 2000 bytes, cut)\n"),
                "{cut}"
            );
        }
        assert_eq!(clean(log.as_bytes(), 2000), log);
        // A byte that is no character becomes a longer one.
        assert!(clean(&[0xff; 1000], 1000).len() <= 1000);
    }
}
