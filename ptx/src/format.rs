//! Numbers and texts formatted like C's `printf`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "exponents and digits of a float"
)]

/// A conversion's flags, width and precision: the text between `%` and the letter.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spec {
    pub(crate) left: bool,
    pub(crate) plus: bool,
    pub(crate) space: bool,
    pub(crate) alternate: bool,
    pub(crate) zero: bool,
    pub(crate) width: usize,
    pub(crate) precision: Option<usize>,
}

impl Spec {
    pub(crate) fn pad(self, out: &mut Vec<u8>, text: &[u8]) {
        let fill = self.width.saturating_sub(text.len());
        if !self.left {
            out.resize(out.len() + fill, b' ');
        }
        out.extend(text);
        if self.left {
            out.resize(out.len() + fill, b' ');
        }
    }

    pub(crate) fn number(self, out: &mut Vec<u8>, prefix: &str, digits: &str, zero: bool) {
        match self.precision {
            Some(p) => {
                let digits = if p == 0 && zero { "" } else { digits };
                let text = format!(
                    "{prefix}{}{digits}",
                    "0".repeat(p.saturating_sub(digits.len()))
                );
                self.pad(out, text.as_bytes());
            }
            None => self.padded(out, prefix, digits),
        }
    }

    pub(crate) fn padded(self, out: &mut Vec<u8>, prefix: &str, digits: &str) {
        let fill = if self.zero && !self.left {
            self.width.saturating_sub(prefix.len() + digits.len())
        } else {
            0
        };
        self.pad(
            out,
            format!("{prefix}{}{digits}", "0".repeat(fill)).as_bytes(),
        );
    }
}

/// A non-negative float, formatted as in C.
pub(crate) fn float(v: f64, kind: u8, precision: Option<usize>, alternate: bool) -> String {
    let upper = kind.is_ascii_uppercase();
    let case = |s: String| if upper { s.to_uppercase() } else { s };
    if v.is_nan() {
        return case("nan".into());
    }
    if v.is_infinite() {
        return case("inf".into());
    }
    let exponential = |p: usize| {
        let s = format!("{v:.p$e}");
        let (m, e) = s.split_once('e').unwrap_or((&s, "0"));
        let e: i32 = e.parse().unwrap_or(0);
        (m.to_string(), e)
    };
    case(match kind | 32 {
        b'f' => format!("{v:.*}", precision.unwrap_or(6)),
        b'e' => {
            let (m, e) = exponential(precision.unwrap_or(6));
            format!("{m}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        b'g' => {
            let p = precision.unwrap_or(6).max(1);
            let (m, e) = exponential(p - 1);
            let strip = |s: String| {
                if s.contains('.') && !alternate {
                    s.trim_end_matches('0').trim_end_matches('.').to_string()
                } else {
                    s
                }
            };
            if e < -4 || e >= p as i32 {
                format!(
                    "{}e{}{:02}",
                    strip(m),
                    if e < 0 { '-' } else { '+' },
                    e.abs()
                )
            } else {
                strip(format!("{v:.*}", (p as i32 - 1 - e).max(0) as usize))
            }
        }
        _ => {
            let bits = v.to_bits();
            let (raw, mut fraction) = ((bits >> 52) as i64, bits & ((1 << 52) - 1));
            let mut lead = u64::from(raw != 0);
            let e = if v == 0.0 { 0 } else { raw.max(1) - 1023 };
            let mut digits = 13;
            if let Some(p) = precision.filter(|p| *p < 13) {
                let drop = 4 * (13 - p) as u32;
                let half = 1u64 << (drop - 1);
                let rest = fraction & ((1 << drop) - 1);
                fraction >>= drop;
                if rest > half || rest == half && fraction & 1 == 1 {
                    fraction += 1;
                    lead += fraction >> (4 * p);
                    fraction &= (1u64 << (4 * p)) - 1;
                }
                digits = p;
            }
            let mut hex = if digits == 0 {
                String::new()
            } else {
                format!("{fraction:0digits$x}")
            };
            if precision.is_none() {
                hex = hex.trim_end_matches('0').to_string();
            } else if let Some(p) = precision.filter(|p| *p > 13) {
                hex.push_str(&"0".repeat(p - 13));
            }
            let dot = if hex.is_empty() && !alternate {
                ""
            } else {
                "."
            };
            format!("0x{lead}{dot}{hex}p{e:+}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_c_writes_them() {
        let f = |v, k| float(v, k, None, false);
        assert_eq!(f(2.345_678_9, b'f'), "2.345679");
        assert_eq!(f(2.345_678_9, b'e'), "2.345679e+00");
        assert_eq!(f(0.0001, b'g'), "0.0001");
        assert_eq!(f(1e10, b'g'), "1e+10");
        assert_eq!(f(100_000.0, b'g'), "100000");
        assert_eq!(f(1.5, b'a'), "0x1.8p+0");
        assert_eq!(float(1.999, b'a', Some(1), false), "0x2.0p+0");
        assert_eq!(f(f64::INFINITY, b'F'), "INF");
    }
}
