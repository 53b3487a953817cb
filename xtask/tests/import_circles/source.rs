//! The modules and imports of a file, as far as its words tell them.

/// The declarations and imports of a file.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Modules in files of their own, but for those of tests and those that another crate has as well.
    pub(crate) modules: Vec<String>,
    pub(crate) imports: Vec<Import>,
}

/// A path of a `use`.
#[derive(Debug)]
pub(crate) struct Import {
    /// Modules of this file that it is in.
    inner: Vec<String>,
    pub(crate) path: Vec<String>,
}

impl Import {
    /// The module of the import, in the file of `module`.
    pub(crate) fn within(&self, module: &[String]) -> Vec<String> {
        [module, &self.inner].concat()
    }
}

impl Source {
    pub(crate) fn parse(text: &str) -> Self {
        let words = words(text);
        let mut source = Self::default();
        // Of each open brace, the name of the module that it is of, if it is of one.
        let mut open: Vec<Option<String>> = Vec::new();
        let (mut is_test, mut is_shared) = (false, false);
        let mut at = 0;
        let word = |at: usize| words.get(at).map_or("", String::as_str);
        while at < words.len() {
            match (word(at), word(at + 1), word(at + 2)) {
                ("#", "[", _) => {
                    let end = closing(&words, at + 1);
                    is_test |= words[at + 2..end].concat() == "cfg(test)";
                    is_shared |= word(at + 2) == "path";
                    at = end;
                }
                ("mod", name, ";") => {
                    if !is_test && !is_shared {
                        source.modules.push(name.to_owned());
                    }
                    (is_test, is_shared) = (false, false);
                    at += 2;
                }
                ("mod", _, "{") if is_test => {
                    is_test = false;
                    at = closing(&words, at + 2);
                }
                ("mod", name, "{") => {
                    open.push(Some(name.to_owned()));
                    at += 2;
                }
                ("use", next, _) if next != "<" => {
                    is_test = false;
                    let inner: Vec<String> = open.iter().flatten().cloned().collect();
                    let mut paths = Vec::new();
                    at = tree(&words, at + 1, &[], &mut paths);
                    let imports = paths.into_iter().map(|path| Import {
                        inner: inner.clone(),
                        path,
                    });
                    source.imports.extend(imports);
                    continue;
                }
                ("{", ..) => open.push(None),
                ("}", ..) => {
                    open.pop();
                    is_test = false;
                }
                (";", ..) => is_test = false,
                _ => {}
            }
            at += 1;
        }
        source
    }
}

/// The place of the bracket that closes the one at `at`.
fn closing(words: &[String], at: usize) -> usize {
    let mut depth = 0usize;
    for (place, word) in words.iter().enumerate().skip(at) {
        match word.as_str() {
            "{" | "[" | "(" => depth += 1,
            "}" | "]" | ")" => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return place;
        }
    }
    words.len()
}

/// Reads a tree of a `use` from `at` on, below `prefix`; returns the place behind it.
fn tree(words: &[String], mut at: usize, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(word) = words.get(at).map(String::as_str) {
        match word {
            ":" => {}
            "{" => {
                let end = closing(words, at);
                at += 1;
                while at < end {
                    at = tree(words, at, &path, paths) + 1;
                }
                return end + 1;
            }
            "as" => at += 1,
            // All that is in it, of which no name says where it comes from.
            "*" => {}
            "," | ";" | "}" => break,
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    if !path.is_empty() {
        paths.push(path);
    }
    at
}

/// The names and signs of a text, without comments, strings, characters and lifetimes.
fn words(text: &str) -> Vec<String> {
    let text: Vec<char> = text.chars().collect();
    let is_name = |at: usize| {
        text.get(at)
            .is_some_and(|it| it.is_alphanumeric() || *it == '_')
    };
    let starts = |at: usize, with: &str| {
        with.chars()
            .enumerate()
            .all(|(n, it)| text.get(at + n) == Some(&it))
    };
    let find = |from: usize, with: &str| {
        (from..text.len())
            .find(|at| starts(*at, with))
            .map_or(text.len(), |at| at + with.len())
    };
    let mut words = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if starts(at, "//") {
            at = find(at, "\n");
        } else if starts(at, "/*") {
            at = find(at, "*/");
        } else if text[at] == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += 1 + usize::from(text[at] == '\\');
            }
            at += 1;
        } else if text[at] == '\'' {
            // A character, or else a lifetime.
            at += match (text.get(at + 1), text.get(at + 2)) {
                (Some('\\'), _) => find(at + 3, "'") - at,
                (_, Some('\'')) => 3,
                _ => 1,
            };
        } else if is_name(at) {
            let end = (at..).find(|at| !is_name(*at)).expect("the text ends");
            let name: String = text[at..end].iter().collect();
            at = end;
            let hashes = (at..).take_while(|at| text.get(*at) == Some(&'#')).count();
            let is_raw = matches!(name.as_str(), "r" | "br" | "cr");
            if is_raw && text.get(at + hashes) == Some(&'"') {
                at = find(at + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
            } else {
                words.push(name);
            }
        } else {
            if !text[at].is_whitespace() {
                words.push(text[at].to_string());
            }
            at += 1;
        }
    }
    words
}
