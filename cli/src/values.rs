//! Values of flags: sizes and times.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads a number of bytes: `65536`, `64K` or `1M`, in units of 2^10.
///
/// # Errors
/// A line with the expected form, if the text is anything else, zero, or more than a `usize` holds.
pub fn byte_count(text: &str) -> Result<usize, String> {
    let binary = parse_size::Config::new().with_binary();
    let bytes = binary.parse_size(text).ok();
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "a number of bytes such as 65536, 64K or 1M is needed".to_owned())
}

/// Reads a time: seconds, or numbers with units, as in `500ms` or `1m 30s`.
///
/// # Errors
/// A line with the expected form, if the text is anything else, or before now.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = match text.trim().parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => {
            let time = text.parse::<SignedDuration>().ok();
            time.and_then(|time| time.try_into().ok())
        }
    };
    time.ok_or_else(|| format!("'{text}' is no time; write seconds, or numbers with ms, s, m or h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_bytes_or_a_line_that_says_so() {
        for (text, bytes) in [
            ("65536", 65536),
            ("64K", 65536),
            ("64k", 65536),
            ("1m", 1 << 20),
            ("1M", 1 << 20),
            ("1.5K", 1536),
            ("2MiB", 2 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        let huge = "99999999999999999999";
        for text in ["", "0", "K", "-1", "1X", "1\u{fc}", huge] {
            assert!(byte_count(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn seconds_or_numbers_with_units() {
        for (text, ms) in [
            ("10", 10_000),
            ("0.5", 500),
            ("2.5s", 2500),
            ("2.5 s", 2500),
            ("500ms", 500),
            ("1m", 60_000),
            ("1m 30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "s", "-1", "-1s", "1s ago", "nan", "inf", "1e30", "ms", "1x",
        ] {
            assert!(time(text).is_err(), "{text:?}");
        }
    }
}
