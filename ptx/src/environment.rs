//! What kernels call but no module defines: printf, assertions, the heap.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "arguments of any size"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Code;
use crate::exec::{Cx, SharedMemory};
use crate::program::Builtin;
use crate::space::Fault;
use crate::warp::{State, Warp, lanes};

/// Bytes of output that are kept; the oldest are dropped, as on a GPU.
const OUTPUT: usize = 1 << 20;
/// Bytes of one string, or of one printf.
const STRING: u64 = 16 << 10;

/// What launches of a device share besides memory.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    output: Mutex<Output>,
    heap: Mutex<Heap>,
}

#[derive(Debug, Default)]
struct Output {
    texts: VecDeque<Vec<u8>>,
    total: usize,
}

/// The heap of `malloc`: a part of device memory. Every step is logarithmic, whatever a kernel does.
#[derive(Debug, Default)]
struct Heap {
    base: u64,
    size: u64,
    /// Sizes of what is in use, and of what is free, by offset.
    used: BTreeMap<u64, u64>,
    free: BTreeMap<u64, u64>,
    /// What is free by size and offset.
    by_size: BTreeSet<(u64, u64)>,
}

impl Heap {
    fn add_free(&mut self, at: u64, size: u64) {
        self.free.insert(at, size);
        self.by_size.insert((size, at));
    }

    fn take_free(&mut self, at: u64, size: u64) {
        self.free.remove(&at);
        self.by_size.remove(&(size, at));
    }

    fn malloc(&mut self, size: u64) -> Option<u64> {
        let size = size.max(1).checked_next_multiple_of(16)?;
        let (room, at) = self.by_size.range((size, 0)..).next().copied()?;
        self.take_free(at, room);
        if room > size {
            self.add_free(at + size, room - size);
        }
        self.used.insert(at, size);
        Some(at)
    }

    fn release(&mut self, at: u64) {
        let Some(mut size) = self.used.remove(&at) else {
            return;
        };
        let mut at = at;
        if let Some((before, n)) = self.free.range(..at).next_back().map(|(o, n)| (*o, *n))
            && before + n == at
        {
            self.take_free(before, n);
            (at, size) = (before, n + size);
        }
        if let Some(n) = self.free.get(&(at + size)).copied() {
            self.take_free(at + size, n);
            size += n;
        }
        self.add_free(at, size);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Environment {
    pub(crate) fn set_heap(&self, base: u64, size: u64) {
        let mut h = Heap {
            base,
            size,
            ..Heap::default()
        };
        h.add_free(0, size);
        *lock(&self.heap) = h;
    }

    pub(crate) fn heap(&self) -> (u64, u64) {
        let h = lock(&self.heap);
        (h.base, h.size)
    }

    /// The address, or 0 where there is no room.
    fn malloc(&self, size: u64) -> u64 {
        let mut h = lock(&self.heap);
        h.malloc(size).map_or(0, |at| h.base + at)
    }

    fn free(&self, at: u64) {
        let mut h = lock(&self.heap);
        let off = at.wrapping_sub(h.base);
        h.release(off);
    }

    fn print(&self, text: Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let mut o = lock(&self.output);
        o.total += text.len();
        o.texts.push_back(text);
        while o.total > OUTPUT {
            let gone = o.texts.pop_front().map_or(0, |t| t.len());
            o.total -= gone;
        }
    }

    /// All output since the last call.
    pub(crate) fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.output))
            .texts
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Runs a call of the environment for some lanes, one after the other.
pub(crate) fn call(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    what: Builtin,
    index: u32,
    m: u32,
) -> Result<(), Box<Fault>> {
    let c = &cx.program.calls[index as usize];
    let frame = w.frame;
    let pc = w.pc - 1;
    if w.mask & !m != 0 {
        let (rest, next) = (w.mask & !m, w.pc);
        w.mask = m;
        w.push(next, frame, rest, State::Ready);
    }
    let arg = |w: &Warp, k: usize, l: usize| c.args.get(k).map_or(0, |p| w.get(frame, *p, l));
    for l in lanes(m) {
        let result = match what {
            Builtin::Malloc => cx.launch.environment.malloc(arg(w, 0, l)),
            Builtin::Free => {
                cx.launch.environment.free(arg(w, 0, l));
                0
            }
            Builtin::Vprintf => {
                let (format, args) = (arg(w, 0, l), arg(w, 1, l));
                let format = string(w, cx, shared, l, pc, format)?;
                let mut read = |w: &mut Warp, at: u64, size: u32| {
                    cx.fetch(w, shared, l, pc, args.wrapping_add(at), size)
                };
                let (text, n) = print(w, cx, shared, l, pc, &format, &mut read)?;
                cx.launch.environment.print(text);
                u64::from(n)
            }
            Builtin::AssertFail => {
                let mut s = Vec::new();
                for k in [0, 1, 3] {
                    let at = arg(w, k, l);
                    s.push(
                        String::from_utf8_lossy(&string(w, cx, shared, l, pc, at)?).into_owned(),
                    );
                }
                let line = arg(w, 2, l) as u32;
                let [x, y, z] = cx.ctaid.get();
                let [tx, ty, tz] = cx.thread(w.index, l as u32);
                let text = format!(
                    "{}:{line}: {}: block: [{x},{y},{z}], thread: [{tx},{ty},{tz}] Assertion `{}` failed.",
                    s[1], s[2], s[0]
                );
                return Err(Box::new(Fault::new(Code::Assert, pc, l as u32, text)));
            }
        };
        if let Some(p) = c.results.first() {
            w.put(frame, *p, l, result);
        }
    }
    Ok(())
}

/// A string that ends with a zero.
fn string(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    lane: usize,
    pc: u32,
    at: u64,
) -> Result<Vec<u8>, Box<Fault>> {
    let mut out = Vec::new();
    for k in 0..STRING {
        let b = cx.fetch(w, shared, lane, pc, at.wrapping_add(k), 1)? as u8;
        if b == 0 {
            break;
        }
        out.push(b);
    }
    Ok(out)
}

type Read<'r> = dyn FnMut(&mut Warp, u64, u32) -> Result<u64, Box<Fault>> + 'r;

/// Formats as C does; arguments lie packed at their natural alignment. Gives the text and the number of arguments.
fn print(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    lane: usize,
    pc: u32,
    format: &[u8],
    read: &mut Read<'_>,
) -> Result<(Vec<u8>, u32), Box<Fault>> {
    let mut out = Vec::new();
    let (mut at, mut count) = (0u64, 0);
    let mut f = format.iter().copied().peekable();
    while let Some(c) = f.next() {
        if out.len() as u64 > STRING {
            break;
        }
        if c != b'%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(c) = f.next_if(|c| b"-+ #0".contains(c)) {
            match c {
                b'-' => spec.left = true,
                b'+' => spec.plus = true,
                b' ' => spec.space = true,
                b'#' => spec.alternate = true,
                _ => spec.zero = true,
            }
        }
        let mut take = |w: &mut Warp, size: u32| {
            at = at.next_multiple_of(u64::from(size));
            let v = read(w, at, size);
            at += u64::from(size);
            count += 1;
            v
        };
        if f.next_if_eq(&b'*').is_some() {
            let n = take(w, 4)? as u32 as i32;
            spec.left |= n < 0;
            spec.width = n.unsigned_abs() as usize;
        }
        while let Some(d) = f.next_if(u8::is_ascii_digit) {
            spec.width = spec
                .width
                .saturating_mul(10)
                .saturating_add(usize::from(d - b'0'));
        }
        if f.next_if_eq(&b'.').is_some() {
            let mut p = 0usize;
            if f.next_if_eq(&b'*').is_some() {
                p = usize::try_from(take(w, 4)? as u32 as i32).unwrap_or(6);
            }
            while let Some(d) = f.next_if(u8::is_ascii_digit) {
                p = p.saturating_mul(10).saturating_add(usize::from(d - b'0'));
            }
            spec.precision = Some(p.min(1000));
        }
        spec.width = spec.width.min(4096);
        let (mut long, mut short) = (0, 0);
        while let Some(c) = f.next_if(|c| b"lhzjtL".contains(c)) {
            match c {
                b'h' => short += 1,
                _ => long += 1,
            }
        }
        let Some(kind) = f.next() else { break };
        let size = if long > 0 { 8 } else { 4 };
        match kind {
            b'%' => out.push(b'%'),
            b'd' | b'i' => {
                let v = take(w, size)?;
                let v = match (size, short) {
                    (8, _) => v as i64,
                    (_, 1) => i64::from(v as i16),
                    (_, 2) => i64::from(v as i8),
                    _ => i64::from(v as i32),
                };
                let sign = if v < 0 {
                    "-"
                } else if spec.plus {
                    "+"
                } else if spec.space {
                    " "
                } else {
                    ""
                };
                spec.number(&mut out, sign, &v.unsigned_abs().to_string(), v == 0);
            }
            b'u' | b'x' | b'X' | b'o' => {
                let v = take(w, size)?;
                let v = match (size, short) {
                    (_, 1) => v & 0xffff,
                    (_, 2) => v & 0xff,
                    _ => v,
                };
                let (prefix, digits) = match kind {
                    b'u' => ("", v.to_string()),
                    b'x' => (
                        if spec.alternate && v != 0 { "0x" } else { "" },
                        format!("{v:x}"),
                    ),
                    b'X' => (
                        if spec.alternate && v != 0 { "0X" } else { "" },
                        format!("{v:X}"),
                    ),
                    _ => (if spec.alternate { "0" } else { "" }, format!("{v:o}")),
                };
                spec.number(&mut out, prefix, &digits, v == 0);
            }
            b'c' => {
                let v = take(w, 4)? as u8;
                spec.pad(&mut out, &[v]);
            }
            b'p' => {
                let v = take(w, 8)?;
                spec.pad(&mut out, format!("0x{v:x}").as_bytes());
            }
            b's' => {
                let p = take(w, 8)?;
                let mut s = string(w, cx, shared, lane, pc, p)?;
                s.truncate(spec.precision.unwrap_or(usize::MAX));
                spec.pad(&mut out, &s);
            }
            b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                let v = f64::from_bits(take(w, 8)?);
                let sign = if v.is_sign_negative() {
                    "-"
                } else if spec.plus {
                    "+"
                } else if spec.space {
                    " "
                } else {
                    ""
                };
                let text = float(v.abs(), kind, spec.precision, spec.alternate);
                if v.is_finite() {
                    spec.padded(&mut out, sign, &text);
                } else {
                    Spec {
                        zero: false,
                        ..spec
                    }
                    .padded(&mut out, sign, &text);
                }
            }
            other => out.extend([b'%', other]),
        }
    }
    Ok((out, count))
}

/// What stands between `%` and the letter.
#[derive(Debug, Clone, Copy, Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn pad(self, out: &mut Vec<u8>, text: &[u8]) {
        let fill = self.width.saturating_sub(text.len());
        if !self.left {
            out.resize(out.len() + fill, b' ');
        }
        out.extend(text);
        if self.left {
            out.resize(out.len() + fill, b' ');
        }
    }

    fn number(self, out: &mut Vec<u8>, prefix: &str, digits: &str, zero: bool) {
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

    fn padded(self, out: &mut Vec<u8>, prefix: &str, digits: &str) {
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

/// A float that is not negative, as C writes it.
fn float(v: f64, kind: u8, precision: Option<usize>, alternate: bool) -> String {
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

    #[test]
    fn the_heap_gives_what_was_freed_again_and_no_more_than_it_has() {
        let e = Environment::default();
        e.set_heap(4096, 64);
        let a = e.malloc(20);
        let b = e.malloc(32);
        assert_eq!((a, b), (4096, 4128));
        assert_eq!(e.malloc(1), 0);
        e.free(a);
        assert_eq!(e.malloc(32), 4096);
        assert_eq!(e.malloc(u64::MAX), 0);
    }
}
