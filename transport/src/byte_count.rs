//! Parsing of byte counts, for the command lines of this workspace.

/// Parses `65536`, `64K` or `1M`: digits, with K for units of 2^10 or M for units of 2^20.
///
/// # Errors
/// A line with the expected form, if the text is anything else, zero, or more than a `usize` holds.
pub fn parse(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
    {
        Some(bytes) if plain && bytes > 0 => Ok(bytes),
        _ => Err("a number of bytes such as 65536, 64K or 1M is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn digits_and_a_unit_or_a_line_that_says_so() {
        assert_eq!(parse("65536"), Ok(65536));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("1m"), Ok(1 << 20));
        let huge = "99999999999999999999";
        for text in ["", "0", "K", "-1", "+1", "1.5K", "1G", "1\u{fc}", huge] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
