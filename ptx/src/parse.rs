//! Tokens to the syntax tree (PTX ISA chapters 4, 5 and 11).

use crate::ast::{
    Ast, Function, Init, Instruction, Limits, Linkage, Number, Operand, Statement, Variable,
};
use crate::error::{Diagnostic, Error, refused};
use crate::lex::{Kind, Token, near, tokens};
use crate::types::{Space, Type};

/// Greatest depth of nested blocks and of nested parentheses.
const DEPTH: u32 = 100;
/// Most names of one `%r<N>`.
const RANGE: u64 = 1 << 20;

type Parsed<T> = Result<T, Diagnostic>;

/// Parses a module whose first word is `.version`. `check` is called with version and target before
/// the rest is parsed.
pub(crate) fn parse<'a>(
    text: &'a str,
    check: &dyn Fn(&Ast<'a>) -> Result<(), Error>,
) -> Result<Ast<'a>, Error> {
    let wrong = |d: Diagnostic| refused(&[d]);
    let tokens = tokens(text).map_err(wrong)?;
    let mut p = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let mut ast = Ast {
        address_size: 64,
        ..Ast::default()
    };
    p.header(&mut ast).map_err(wrong)?;
    check(&ast)?;
    while p.peek() != Kind::End {
        p.item(&mut ast).map_err(wrong)?;
    }
    Ok(ast)
}

struct Parser<'a, 't> {
    tokens: &'t [Token<'a>],
    at: usize,
    depth: u32,
}

impl<'a> Parser<'a, '_> {
    fn token(&self) -> Token<'a> {
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> Kind<'a> {
        self.token().kind
    }

    fn second(&self) -> Kind<'a> {
        self.tokens.get(self.at + 1).map_or(Kind::End, |t| t.kind)
    }

    fn line(&self) -> u32 {
        self.token().line
    }

    fn next(&mut self) -> Kind<'a> {
        let k = self.peek();
        self.at += 1;
        k
    }

    fn is(&mut self, op: &'static str) -> bool {
        let yes = self.peek() == Kind::Op(op);
        self.at += usize::from(yes);
        yes
    }

    fn dot(&mut self, word: &str) -> bool {
        let yes = matches!(self.peek(), Kind::Dot(w) if w == word);
        self.at += usize::from(yes);
        yes
    }

    fn want(&mut self, op: &'static str) -> Parsed<()> {
        if self.is(op) {
            Ok(())
        } else {
            Err(self.wrong())
        }
    }

    fn name(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Kind::Name(n) => {
                self.at += 1;
                Ok(n)
            }
            _ => Err(self.wrong()),
        }
    }

    /// The error for the current token.
    fn wrong(&self) -> Diagnostic {
        let t = self.token();
        let shown = match t.kind {
            Kind::Name(n) | Kind::Text(n) => n.to_string(),
            Kind::Dot(d) => format!(".{d}"),
            Kind::Int(i) => i.to_string(),
            Kind::F32(b) => format!("0f{b:08X}"),
            Kind::F64(b) => format!("0d{b:016X}"),
            Kind::Op(o) => o.to_string(),
            Kind::End => String::new(),
        };
        near(t.line, &shown)
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEPTH {
            return Err(self.wrong());
        }
        self.depth += 1;
        let r = f(self);
        self.depth -= 1;
        r
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.peek() != Kind::End && self.line() == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Parsed<()> {
        while self.peek() != Kind::Op("{") {
            if self.peek() == Kind::End {
                return Err(self.wrong());
            }
            self.at += 1;
        }
        let mut open = 0;
        loop {
            match self.next() {
                Kind::Op("{") => open += 1,
                Kind::Op("}") => open -= 1,
                Kind::End => return Err(self.wrong()),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    fn header(&mut self, ast: &mut Ast<'a>) -> Parsed<()> {
        let line = self.line();
        if !self.dot("version") {
            return Err(self.wrong());
        }
        // `9.0` is a number to the lexer: its digits are read back from the bits.
        let Kind::F64(bits) = self.next() else {
            return Err(self.wrong());
        };
        let version = format!("{:?}", f64::from_bits(bits));
        let (major, minor) = version.split_once('.').unwrap_or(("0", "0"));
        ast.version = (
            major.parse().unwrap_or(u32::MAX),
            minor.parse().unwrap_or(u32::MAX),
        );
        ast.version_line = line;
        ast.target_line = self.line();
        if !self.dot("target") {
            return Ok(());
        }
        ast.target = self.name()?;
        while self.is(",") {
            self.name()?;
        }
        Ok(())
    }

    fn item(&mut self, ast: &mut Ast<'a>) -> Parsed<()> {
        let line = self.line();
        match self.peek() {
            Kind::Dot("address_size") => {
                self.at += 1;
                ast.address_size = self.unsigned()?;
            }
            Kind::Dot("file" | "loc") | Kind::Op("@") => self.skip_line(),
            Kind::Dot("section") => self.skip_braces()?,
            Kind::Dot("pragma") => {
                self.at += 2;
                self.want(";")?;
            }
            Kind::Op(";") => self.at += 1,
            Kind::Dot(_) => {
                let linkage = self.linkage();
                match self.peek() {
                    Kind::Dot("entry" | "func") => {
                        let f = self.function(line)?;
                        ast.functions.push(f);
                    }
                    Kind::Dot("alias") => {
                        return Err(Diagnostic::error(
                            line,
                            "the cpu executor does not implement '.alias'",
                        ));
                    }
                    _ => {
                        let mut list = Vec::new();
                        self.variables(linkage, &mut list)?;
                        self.want(";")?;
                        ast.variables.append(&mut list);
                    }
                }
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }

    fn linkage(&mut self) -> Linkage {
        let mut l = Linkage::Internal;
        loop {
            l = match self.peek() {
                Kind::Dot("visible") => Linkage::Visible,
                Kind::Dot("extern") => Linkage::Extern,
                Kind::Dot("weak" | "common") => Linkage::Weak,
                _ => return l,
            };
            self.at += 1;
        }
    }

    fn unsigned(&mut self) -> Parsed<u64> {
        match self.number()? {
            Number::Int(i) if i >= 0 => Ok(i.cast_unsigned()),
            _ => Err(self.wrong()),
        }
    }

    fn small(&mut self) -> Parsed<u32> {
        u32::try_from(self.unsigned()?).map_err(|_| self.wrong())
    }

    fn triple(&mut self) -> Parsed<[u32; 3]> {
        let mut t = [self.small()?, 1, 1];
        for n in &mut t[1..] {
            if self.is(",") {
                *n = self.small()?;
            }
        }
        Ok(t)
    }

    fn function(&mut self, line: u32) -> Parsed<Function<'a>> {
        let entry = self.dot("entry");
        if !entry {
            self.at += 1;
        }
        if self.dot("attribute") {
            self.skip_parens()?;
        }
        let results = if self.peek() == Kind::Op("(") {
            self.params()?
        } else {
            Vec::new()
        };
        let name = self.name()?;
        let params = if self.peek() == Kind::Op("(") {
            self.params()?
        } else {
            Vec::new()
        };
        let mut limits = Limits::default();
        loop {
            match self.peek() {
                Kind::Dot("maxntid") => {
                    self.at += 1;
                    limits.max_ntid = Some(self.triple()?);
                }
                Kind::Dot("reqntid") => {
                    self.at += 1;
                    limits.req_ntid = Some(self.triple()?);
                }
                Kind::Dot("reqnctapercluster") => {
                    self.at += 1;
                    limits.cluster = Some(self.triple()?);
                }
                Kind::Dot(
                    "maxnreg"
                    | "minnctapersm"
                    | "maxnctapersm"
                    | "maxclusterrank"
                    | "abi_preserve"
                    | "abi_preserve_control",
                ) => {
                    self.at += 1;
                    self.unsigned()?;
                }
                Kind::Dot("noreturn" | "explicitcluster" | "blocksareclusters") => self.at += 1,
                Kind::Dot("pragma") => {
                    self.at += 2;
                    self.want(";")?;
                }
                _ => break,
            }
        }
        let body = if self.is(";") {
            None
        } else {
            self.want("{")?;
            Some(self.body()?)
        };
        Ok(Function {
            name,
            entry,
            results,
            params,
            limits,
            body,
            line,
        })
    }

    fn skip_parens(&mut self) -> Parsed<()> {
        self.want("(")?;
        while !self.is(")") {
            if self.next() == Kind::End {
                return Err(self.wrong());
            }
        }
        Ok(())
    }

    /// `(.param .u64 a, .reg .b32 b)`
    fn params(&mut self) -> Parsed<Vec<Variable<'a>>> {
        self.want("(")?;
        let mut list = Vec::new();
        if self.is(")") {
            return Ok(list);
        }
        loop {
            self.variable(Linkage::Internal, &mut list)?;
            if !self.is(",") {
                break;
            }
        }
        self.want(")")?;
        Ok(list)
    }

    /// A declaration with all of its comma-separated names.
    fn variables(&mut self, linkage: Linkage, out: &mut Vec<Variable<'a>>) -> Parsed<()> {
        let shape = self.shape(linkage)?;
        loop {
            self.declarator(&shape, out)?;
            if !self.is(",") {
                return Ok(());
            }
        }
    }

    fn variable(&mut self, linkage: Linkage, out: &mut Vec<Variable<'a>>) -> Parsed<()> {
        let shape = self.shape(linkage)?;
        self.declarator(&shape, out)
    }

    /// Everything before the name.
    fn shape(&mut self, linkage: Linkage) -> Parsed<Variable<'a>> {
        let line = self.line();
        let (mut space, mut ty, mut vector, mut align) = (None, None, 1, 0);
        let mut pointer = false;
        while let Kind::Dot(word) = self.peek() {
            match word {
                "reg" => space = Some(Space::Reg),
                "v2" => vector = 2,
                "v4" => vector = 4,
                "v8" => vector = 8,
                "ptr" => pointer = true,
                "align" => {
                    self.at += 1;
                    let a = self.small()?;
                    if !a.is_power_of_two() || a > 1 << 20 {
                        return Err(Diagnostic::error(
                            line,
                            format!("Alignment {a} is not a power of two"),
                        ));
                    }
                    // For a pointer this is the pointee's.
                    if !pointer {
                        align = a;
                    }
                    continue;
                }
                "attribute" => {
                    self.at += 1;
                    self.skip_parens()?;
                    continue;
                }
                "texref" | "samplerref" | "surfref" | "sreg" => {
                    return Err(Diagnostic::error(
                        line,
                        format!("the cpu executor does not implement '.{word}'"),
                    ));
                }
                _ => {
                    if let Some(t) = Type::parse(word) {
                        ty = Some(t);
                    } else if let Some(s) = Space::parse(word) {
                        if !pointer {
                            space = Some(s);
                        }
                    } else {
                        return Err(self.wrong());
                    }
                }
            }
            self.at += 1;
        }
        let (Some(space), Some(ty)) = (space, ty) else {
            return Err(self.wrong());
        };
        if align == 0 {
            align = ty.bytes() * vector;
        }
        Ok(Variable {
            name: "",
            space,
            ty,
            vector,
            align,
            count: 1,
            is_array: false,
            init: None,
            linkage,
            line,
            range: None,
        })
    }

    fn declarator(&mut self, shape: &Variable<'a>, out: &mut Vec<Variable<'a>>) -> Parsed<()> {
        let mut v = Variable {
            line: self.line(),
            ..shape.clone()
        };
        v.name = self.name()?;
        if self.is("<") {
            let n = self.unsigned()?;
            if n > RANGE {
                return Err(Diagnostic::error(
                    v.line,
                    format!("more than {RANGE} registers of one name"),
                ));
            }
            v.range = u32::try_from(n).ok();
            self.want(">")?;
        }
        let mut open = false;
        while self.is("[") {
            v.is_array = true;
            if self.is("]") {
                open = true;
                v.count = 0;
            } else {
                let n = self.unsigned()?;
                v.count = if open { 0 } else { v.count.saturating_mul(n) };
                self.want("]")?;
            }
        }
        if self.is("=") {
            let mut list = Vec::new();
            self.initialiser(&mut list)?;
            if open {
                v.count = (list.len() as u64).div_ceil(u64::from(v.vector));
            }
            v.init = Some(list);
        }
        out.push(v);
        Ok(())
    }

    fn initialiser(&mut self, out: &mut Vec<Init<'a>>) -> Parsed<()> {
        if self.is("{") {
            return self.deeper(|p| {
                while !p.is("}") {
                    p.initialiser(out)?;
                    if !p.is(",") {
                        p.want("}")?;
                        break;
                    }
                }
                Ok(())
            });
        }
        match self.peek() {
            Kind::Name(n) if n != "WARP_SZ" => {
                self.at += 1;
                let name = if n == "generic" && self.is("(") {
                    let inner = self.name()?;
                    self.want(")")?;
                    inner
                } else {
                    n
                };
                let offset = self.offset()?;
                out.push(Init::Address(name, offset));
            }
            _ => {
                let n = self.number()?;
                out.push(Init::Value(n));
            }
        }
        Ok(())
    }

    /// `+4`, `-8`, `+-8` or nothing.
    fn offset(&mut self) -> Parsed<i64> {
        if !matches!(self.peek(), Kind::Op("+" | "-")) {
            return Ok(0);
        }
        let minus = self.next() == Kind::Op("-");
        match self.binary(11)? {
            Number::Int(i) => Ok(if minus { i.wrapping_neg() } else { i }),
            _ => Err(self.wrong()),
        }
    }

    /// A constant expression.
    fn number(&mut self) -> Parsed<Number> {
        let n = self.binary(0)?;
        if !self.is("?") {
            return Ok(n);
        }
        let a = self.deeper(Self::number)?;
        self.want(":")?;
        let b = self.deeper(Self::number)?;
        Ok(if n == Number::Int(0) { b } else { a })
    }

    fn binary(&mut self, least: u32) -> Parsed<Number> {
        let mut left = self.unary()?;
        while let Kind::Op(op) = self.peek() {
            let level = match op {
                "||" => 1,
                "&&" => 2,
                "|" => 3,
                "^" => 4,
                "&" => 5,
                "==" | "!=" => 6,
                "<=" | ">=" => 7,
                "<<" | ">>" => 8,
                "+" | "-" => 9,
                "*" | "/" | "%" => 10,
                _ => break,
            };
            if level < least {
                break;
            }
            self.at += 1;
            let right = self.deeper(|p| p.binary(level + 1))?;
            left = match (left, right) {
                (Number::Int(a), Number::Int(b)) => Number::Int(fold(op, a, b)),
                (a, b) => {
                    let f = |n| match n {
                        #[expect(
                            clippy::cast_precision_loss,
                            reason = "as the assembler converts it"
                        )]
                        Number::Int(i) => i as f64,
                        Number::F32(x) => f64::from(f32::from_bits(x)),
                        Number::F64(x) => f64::from_bits(x),
                    };
                    let (a, b) = (f(a), f(b));
                    Number::F64(
                        match op {
                            "+" => a + b,
                            "-" => a - b,
                            "*" => a * b,
                            "/" => a / b,
                            _ => return Err(self.wrong()),
                        }
                        .to_bits(),
                    )
                }
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed<Number> {
        let line = self.line();
        match self.next() {
            Kind::Int(i) => Ok(Number::Int(i.cast_signed())),
            Kind::F32(b) => Ok(Number::F32(b)),
            Kind::F64(b) => Ok(Number::F64(b)),
            Kind::Name("WARP_SZ") => Ok(Number::Int(32)),
            Kind::Op("-") => Ok(match self.deeper(Self::unary)? {
                Number::Int(i) => Number::Int(i.wrapping_neg()),
                Number::F32(b) => Number::F32(b ^ 1 << 31),
                Number::F64(b) => Number::F64(b ^ 1 << 63),
            }),
            Kind::Op("+") => self.deeper(Self::unary),
            Kind::Op(op @ ("~" | "!")) => match self.deeper(Self::unary)? {
                Number::Int(i) => Ok(Number::Int(if op == "~" { !i } else { i64::from(i == 0) })),
                _ => Err(near(line, op)),
            },
            Kind::Op("(") => {
                if matches!(self.peek(), Kind::Dot("s64" | "u64")) {
                    self.at += 1;
                    self.want(")")?;
                    return self.deeper(Self::unary);
                }
                let n = self.deeper(Self::number)?;
                self.want(")")?;
                Ok(n)
            }
            _ => {
                self.at -= 1;
                Err(self.wrong())
            }
        }
    }

    /// Statements up to and including the closing brace.
    fn body(&mut self) -> Parsed<Vec<Statement<'a>>> {
        let mut out = Vec::new();
        while !self.is("}") {
            self.statement(&mut out)?;
        }
        Ok(out)
    }

    fn statement(&mut self, out: &mut Vec<Statement<'a>>) -> Parsed<()> {
        match self.peek() {
            Kind::Op(";") => self.at += 1,
            Kind::Op("{") => {
                self.at += 1;
                let inner = self.deeper(Self::body)?;
                out.push(Statement::Block(inner));
            }
            Kind::Dot("loc" | "file") => self.skip_line(),
            Kind::Dot("pragma") => {
                self.at += 2;
                self.want(";")?;
            }
            Kind::Dot("section") => self.skip_braces()?,
            Kind::Dot(_) => {
                let linkage = self.linkage();
                let mut list = Vec::new();
                self.variables(linkage, &mut list)?;
                self.want(";")?;
                out.extend(list.into_iter().map(Statement::Declare));
            }
            Kind::Name(label) if self.second() == Kind::Op(":") => {
                self.at += 2;
                match self.peek() {
                    Kind::Dot("branchtargets" | "calltargets") => {
                        self.at += 1;
                        let mut names = vec![self.name()?];
                        while self.is(",") {
                            names.push(self.name()?);
                        }
                        self.want(";")?;
                        out.push(Statement::Targets(label, names));
                    }
                    Kind::Dot("callprototype") => {
                        self.at += 1;
                        let results = if self.peek() == Kind::Op("(") {
                            self.params()?
                        } else {
                            Vec::new()
                        };
                        self.name()?;
                        let params = if self.peek() == Kind::Op("(") {
                            self.params()?
                        } else {
                            Vec::new()
                        };
                        while self.dot("noreturn")
                            || (matches!(self.peek(), Kind::Dot(d) if d.starts_with("abi_preserve")))
                        {
                            if matches!(self.peek(), Kind::Int(_)) {
                                self.at += 1;
                            }
                        }
                        self.want(";")?;
                        out.push(Statement::Prototype(label, results, params));
                    }
                    _ => out.push(Statement::Label(label)),
                }
            }
            Kind::Name(_) | Kind::Op("@") => {
                let i = self.instruction()?;
                out.push(Statement::Instruction(i));
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }

    fn instruction(&mut self) -> Parsed<Instruction<'a>> {
        let mut guard = None;
        if self.is("@") {
            let not = self.is("!");
            guard = Some((self.name()?, not));
        }
        let line = self.line();
        let name = self.name()?;
        let mut modifiers = Vec::new();
        while let Kind::Dot(m) = self.peek() {
            modifiers.push(m);
            self.at += 1;
        }
        let mut operands = Vec::new();
        while !self.is(";") {
            if !operands.is_empty() {
                self.want(",")?;
            }
            let o = self.operand()?;
            operands.push(o);
        }
        Ok(Instruction {
            guard,
            name,
            modifiers,
            operands,
            line,
        })
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        match self.peek() {
            Kind::Name("WARP_SZ") => Ok(Operand::Number(self.number()?)),
            Kind::Name(n) => {
                self.at += 1;
                if self.is("|") {
                    return Ok(Operand::Pair(n, self.name()?));
                }
                if n == "_" {
                    return Ok(Operand::Sink);
                }
                if let Kind::Dot(e) = self.peek() {
                    self.at += 1;
                    return Ok(Operand::Element(n, e));
                }
                match self.offset()? {
                    0 => Ok(Operand::Name(n)),
                    k => Ok(Operand::Offset(n, k)),
                }
            }
            Kind::Op("!") if matches!(self.second(), Kind::Name(_)) => {
                self.at += 1;
                Ok(Operand::Not(self.name()?))
            }
            Kind::Op("{") => {
                self.at += 1;
                self.list("}").map(Operand::Vector)
            }
            Kind::Op("(") if self.is_call_list() => {
                self.at += 1;
                self.list(")").map(Operand::List)
            }
            Kind::Op("[") => {
                self.at += 1;
                let base = match self.peek() {
                    Kind::Name(n) if n != "WARP_SZ" => {
                        self.at += 1;
                        Some(n)
                    }
                    _ => None,
                };
                let offset = if base.is_some() {
                    self.offset()?
                } else {
                    match self.number()? {
                        Number::Int(i) => i,
                        _ => return Err(self.wrong()),
                    }
                };
                self.want("]")?;
                Ok(Operand::Address(base, offset))
            }
            _ => Ok(Operand::Number(self.number()?)),
        }
    }

    /// Whether a parenthesis opens the list of a call rather than an expression.
    fn is_call_list(&self) -> bool {
        match self.second() {
            Kind::Name(n) => n != "WARP_SZ",
            Kind::Op(")") => true,
            // `(1, 2)`: constants as arguments
            _ => {
                let mut open = 0;
                for t in &self.tokens[self.at..] {
                    match t.kind {
                        Kind::Op("(") => open += 1,
                        Kind::Op(")") => {
                            open -= 1;
                            if open == 0 {
                                return false;
                            }
                        }
                        Kind::Op(",") if open == 1 => return true,
                        Kind::Op(";") | Kind::End => return false,
                        _ => {}
                    }
                }
                false
            }
        }
    }

    fn list(&mut self, close: &'static str) -> Parsed<Vec<Operand<'a>>> {
        self.deeper(|p| {
            let mut out = Vec::new();
            while !p.is(close) {
                if !out.is_empty() {
                    p.want(",")?;
                }
                out.push(p.operand()?);
            }
            Ok(out)
        })
    }
}

fn fold(op: &str, a: i64, b: i64) -> i64 {
    let shift = |b: i64| u32::try_from(b & 63).unwrap_or(0);
    match op {
        "||" => i64::from(a != 0 || b != 0),
        "&&" => i64::from(a != 0 && b != 0),
        "|" => a | b,
        "^" => a ^ b,
        "&" => a & b,
        "==" => i64::from(a == b),
        "!=" => i64::from(a != b),
        "<=" => i64::from(a <= b),
        ">=" => i64::from(a >= b),
        "<<" => a.wrapping_shl(shift(b)),
        ">>" => a.wrapping_shr(shift(b)),
        "+" => a.wrapping_add(b),
        "-" => a.wrapping_sub(b),
        "*" => a.wrapping_mul(b),
        "/" => a.checked_div(b).unwrap_or(0),
        _ => a.checked_rem(b).unwrap_or(0),
    }
}
