//! Text to tokens (PTX ISA chapter 4).

use crate::error::Diagnostic;

/// A token and the line, counted from 1, on which it begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) line: u32,
}

/// The kinds of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind<'a> {
    /// A name; `%`, `$` and `_` may begin it.
    Name(&'a str),
    /// A directive or a modifier: the word after the dot.
    Dot(&'a str),
    /// An integer.
    Int(u64),
    /// `0f` and eight digits: the bits of an f32.
    F32(u32),
    /// `0d` and sixteen digits, or a decimal number with a point or an exponent: the bits of an f64.
    F64(u64),
    /// A string, without its quotes.
    Text(&'a str),
    /// Punctuation and operators.
    Op(&'static str),
    /// The end of the text.
    End,
}

const OPS: [&str; 34] = [
    "<<", ">>", "==", "!=", "<=", ">=", "&&", "||", "{", "}", "(", ")", "[", "]", "<", ">", ",",
    ";", ":", "+", "-", "*", "/", "%", "&", "|", "^", "~", "!", "=", "@", "?", "_", "\\",
];

fn starts_name(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn in_name(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

/// All tokens of `text`, the last of them [`Kind::End`].
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Diagnostic> {
    let b = text.as_bytes();
    let mut out = Vec::with_capacity(b.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    let run = |from: usize, f: &dyn Fn(u8) -> bool| {
        from + b[from..].iter().take_while(|c| f(**c)).count()
    };
    while at < b.len() {
        let c = b[at];
        let from = at;
        if c == b'\n' {
            line += 1;
            at += 1;
            continue;
        }
        if c.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if b[at..].starts_with(b"//") {
            at = run(at, &|c| c != b'\n');
            continue;
        }
        if b[at..].starts_with(b"/*") {
            let end = text[at + 2..]
                .find("*/")
                .map_or(b.len(), |k| at + 2 + k + 2);
            line += count_lines(&b[at..end]);
            at = end;
            continue;
        }
        let first = line;
        let kind = if starts_name(c) && (c != b'%' || b.get(at + 1).copied().is_some_and(in_name)) {
            at = run(at + 1, &in_name);
            Kind::Name(&text[from..at])
        } else if c == b'.'
            && b.get(at + 1).copied().is_some_and(in_name)
            && !b[at + 1].is_ascii_digit()
        {
            at = run(at + 1, &in_name);
            while b[at..].starts_with(b"::") && b.get(at + 2).copied().is_some_and(in_name) {
                at = run(at + 2, &in_name);
            }
            Kind::Dot(&text[from + 1..at])
        } else if c.is_ascii_digit() || c == b'.' {
            let (kind, end) = number(text, at)
                .ok_or_else(|| near(line, &text[at..run(at, &in_name).max(at + 1)]))?;
            at = end;
            kind
        } else if c == b'"' {
            let end = run(at + 1, &|c| c != b'"');
            let body = text.get(at + 1..end).unwrap_or("");
            line += count_lines(body.as_bytes());
            at = (end + 1).min(b.len());
            Kind::Text(body)
        } else {
            let Some(op) = OPS.iter().find(|o| b[at..].starts_with(o.as_bytes())) else {
                let shown = text[at..].chars().next().unwrap_or(' ');
                return Err(near(line, &shown.to_string()));
            };
            at += op.len();
            Kind::Op(op)
        };
        out.push(Token { kind, line: first });
    }
    out.push(Token {
        kind: Kind::End,
        line,
    });
    Ok(out)
}

fn count_lines(b: &[u8]) -> u32 {
    u32::try_from(b.iter().filter(|c| **c == b'\n').count()).unwrap_or(u32::MAX)
}

/// ptxas's error for a text that is not PTX at this place.
pub(crate) fn near(line: u32, what: &str) -> Diagnostic {
    Diagnostic::fatal(line, format!("Parsing error near '{what}': syntax error"))
}

/// The number that begins at `at`, and the position after it.
fn number(text: &str, at: usize) -> Option<(Kind<'_>, usize)> {
    let b = text.as_bytes();
    let run = |from: usize, f: &dyn Fn(u8) -> bool| {
        from + b[from..].iter().take_while(|c| f(**c)).count()
    };
    let suffix = |end: usize| {
        if b.get(end) == Some(&b'U') {
            end + 1
        } else {
            end
        }
    };
    if b[at] == b'0' && at + 1 < b.len() {
        let radix = match b[at + 1] {
            b'x' | b'X' => 16,
            b'b' | b'B' => 2,
            b'f' | b'F' | b'd' | b'D' => {
                let digits = if b[at + 1] | 32 == b'f' { 8 } else { 16 };
                let hex = text.get(at + 2..at + 2 + digits)?;
                let bits = u64::from_str_radix(hex, 16).ok()?;
                let kind = if digits == 8 {
                    Kind::F32(u32::try_from(bits).ok()?)
                } else {
                    Kind::F64(bits)
                };
                return Some((kind, at + 2 + digits));
            }
            _ => 0,
        };
        if radix != 0 {
            let end = run(at + 2, &|c| {
                c.is_ascii_hexdigit() && (radix == 16 || c < b'2')
            });
            return Some((
                Kind::Int(u64::from_str_radix(&text[at + 2..end], radix).ok()?),
                suffix(end),
            ));
        }
    }
    let mut end = run(at, &|c| c.is_ascii_digit());
    let mut float = false;
    if b.get(end) == Some(&b'.')
        && b.get(end + 1)
            .is_none_or(|c| c.is_ascii_digit() || !in_name(*c))
    {
        float = true;
        end = run(end + 1, &|c| c.is_ascii_digit());
    }
    if b.get(end).is_some_and(|c| c | 32 == b'e') {
        let sign = usize::from(b.get(end + 1).is_some_and(|c| matches!(c, b'+' | b'-')));
        let digits = run(end + 1 + sign, &|c| c.is_ascii_digit());
        if digits > end + 1 + sign {
            float = true;
            end = digits;
        }
    }
    let word = &text[at..end];
    if float {
        return Some((Kind::F64(word.parse::<f64>().ok()?.to_bits()), end));
    }
    let value = if word.len() > 1 && word.starts_with('0') {
        u64::from_str_radix(word, 8).ok()?
    } else {
        word.parse().ok()?
    };
    Some((Kind::Int(value), suffix(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        tokens(text).unwrap().into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn literals_come_in_every_base() {
        let want = [255, 5, 15, 9, 42].map(Kind::Int);
        assert_eq!(kinds("0xFF 0b101 017 9 42U")[..5], want);
        assert_eq!(
            kinds("0f3F800000 0d3FF8000000000000")[..2],
            [Kind::F32(0x3f80_0000), Kind::F64(1.5f64.to_bits())]
        );
        assert_eq!(
            kinds("1.25 1e3")[..2],
            [Kind::F64(1.25f64.to_bits()), Kind::F64(1000f64.to_bits())]
        );
    }

    #[test]
    fn a_modifier_may_hold_colons_and_a_label_may_not() {
        assert_eq!(
            kinds("fence.async.shared::cta")[2],
            Kind::Dot("shared::cta")
        );
        assert_eq!(
            kinds("$L__BB0_3: ret")[..2],
            [Kind::Name("$L__BB0_3"), Kind::Op(":")]
        );
    }

    #[test]
    fn lines_count_through_comments() {
        let t = tokens("a /* \n\n */ b // c\nd").unwrap();
        assert_eq!(t.iter().map(|t| t.line).collect::<Vec<_>>(), [1, 3, 4, 4]);
    }
}
