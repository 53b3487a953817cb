//! Functions that kernels call but no module defines: printf, assertions, the heap.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "arguments of any size"
)]

use super::cost;
use super::cx::{Cx, SharedMemory};
use super::registers::lanes;
use super::warp::{State, Warp};
use crate::Code;
use crate::format::{Spec, float};
use crate::program::Builtin;
use crate::space::Fault;
use crate::types::Space;

/// Most bytes of strings that one printf reads, and most bytes that it writes.
const STRING: u64 = 16 << 10;
/// Instructions charged for each lane of a call, at least.
const STEP: u32 = 16;

/// Runs a call of the environment for some lanes, one after the other. Lanes for which there is no
/// time left execute the call again. Returns its cost in instructions.
pub(crate) fn call(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    what: Builtin,
    index: u32,
    m: u32,
) -> Result<u32, Box<Fault>> {
    let c = &cx.program.calls[index as usize];
    let frame = w.frame;
    let pc = w.pc - 1;
    if w.mask & !m != 0 {
        let (rest, next) = (w.mask & !m, w.pc);
        w.mask = m;
        w.push(next, frame, rest, State::Ready);
    }
    let mut used = 0;
    let mut left = m;
    // Postponed lanes come first: output stays in the order of the lanes.
    let put_off = |w: &mut Warp, left: u32| {
        w.push(w.pc, frame, m & !left, State::Ready);
        w.push(pc, frame, left, State::Ready);
        w.mask = 0;
    };
    let arg = |w: &Warp, k: usize, l: usize| c.args.get(k).map_or(0, |p| w.get(frame, *p, l));
    for l in lanes(m) {
        if used > cost::CALL {
            put_off(w, left);
            break;
        }
        used += STEP;
        let result = match what {
            Builtin::Malloc => cx.launch.environment.malloc(arg(w, 0, l)),
            Builtin::Free => {
                cx.launch.environment.free(arg(w, 0, l));
                0
            }
            Builtin::Vprintf => {
                let (format, args) = (arg(w, 0, l), arg(w, 1, l));
                let mut lane = Lane::new(w, cx, shared, l, pc);
                let text = lane
                    .string(format, usize::MAX)
                    .and_then(|format| lane.print(&format, args));
                used += lane.used();
                match text {
                    Ok((text, n)) => {
                        used += text.len() as u32 / 16;
                        cx.launch.environment.print(&text);
                        u64::from(n)
                    }
                    Err(Halt::Fault(f)) => return Err(f),
                    Err(Halt::Fetched) => {
                        put_off(w, left);
                        return Ok(used);
                    }
                }
            }
            Builtin::AssertFail => {
                let mut s = Vec::new();
                for k in [0, 1, 3] {
                    let at = arg(w, k, l);
                    let mut lane = Lane::new(w, cx, shared, l, pc);
                    let text = lane.string(at, usize::MAX);
                    used += lane.used();
                    match text {
                        Ok(text) => s.push(String::from_utf8_lossy(&text).into_owned()),
                        Err(Halt::Fault(f)) => return Err(f),
                        Err(Halt::Fetched) => {
                            put_off(w, left);
                            return Ok(used);
                        }
                    }
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
        left &= !(1 << l);
        if let Some(p) = c.results.first() {
            w.put(frame, *p, l, result);
        }
    }
    Ok(used)
}

/// The reasons why a lane does not complete a call.
enum Halt {
    Fault(Box<Fault>),
    /// Memory was fetched, as much as is allowed at once: the lane executes the call again.
    Fetched,
}

/// One lane, reading the data that its arguments point to.
struct Lane<'l, 'a> {
    w: &'l mut Warp,
    cx: &'l Cx<'a>,
    shared: &'l SharedMemory,
    lane: usize,
    pc: u32,
    /// Bytes of strings that it may still read.
    budget: u64,
    /// Fuel left for fetching memory.
    fuel: u32,
}

impl<'l, 'a> Lane<'l, 'a> {
    fn new(
        w: &'l mut Warp,
        cx: &'l Cx<'a>,
        shared: &'l SharedMemory,
        lane: usize,
        pc: u32,
    ) -> Self {
        Self {
            w,
            cx,
            shared,
            lane,
            pc,
            budget: STRING,
            fuel: cost::CALL,
        }
    }

    /// Its cost so far, in instructions.
    fn used(&self) -> u32 {
        cost::CALL - self.fuel + 2 * (STRING - self.budget) as u32
    }

    fn read(&mut self, at: u64, size: u32) -> Result<u64, Halt> {
        let (cx, before) = (self.cx, self.fuel);
        if before == 0 {
            return Err(Halt::Fetched);
        }
        cx.fetch(self.w, &mut self.fuel, Space::Generic, size.into(), [at]);
        // The call is charged for it.
        self.w.burnt -= before - self.fuel;
        cx.read(self.w, self.shared, self.lane, self.pc, at, size)
            .map_err(Halt::Fault)
    }

    /// A string up to a zero, or to `most` bytes, or to the end of the budget.
    fn string(&mut self, at: u64, most: usize) -> Result<Vec<u8>, Halt> {
        let mut out = Vec::new();
        for k in 0..self.budget.min(most as u64) {
            self.budget -= 1;
            let b = self.read(at.wrapping_add(k), 1)? as u8;
            if b == 0 {
                break;
            }
            out.push(b);
        }
        Ok(out)
    }

    /// Formats as C does; arguments are packed at their natural alignment. Returns the text and the
    /// number of arguments.
    fn print(&mut self, format: &[u8], args: u64) -> Result<(Vec<u8>, u32), Halt> {
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
            let mut take = |lane: &mut Self, size: u32| {
                at = at.next_multiple_of(u64::from(size));
                let v = lane.read(args.wrapping_add(at), size);
                at += u64::from(size);
                count += 1;
                v
            };
            if f.next_if_eq(&b'*').is_some() {
                let n = take(self, 4)? as u32 as i32;
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
                    p = usize::try_from(take(self, 4)? as u32 as i32).unwrap_or(6);
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
                    let v = take(self, size)?;
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
                    let v = take(self, size)?;
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
                    let v = take(self, 4)? as u8;
                    spec.pad(&mut out, &[v]);
                }
                b'p' => {
                    let v = take(self, 8)?;
                    spec.pad(&mut out, format!("0x{v:x}").as_bytes());
                }
                b's' => {
                    let p = take(self, 8)?;
                    // Nothing is read beyond the precision: there may be no zero.
                    let s = self.string(p, spec.precision.unwrap_or(usize::MAX))?;
                    spec.pad(&mut out, &s);
                }
                b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                    let v = f64::from_bits(take(self, 8)?);
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
}
