//! A strict reader of the OpenMetrics text format, for tests: whatever the specification forbids is a panic.

use std::collections::{BTreeMap, BTreeSet};

/// The samples by name and labels, as in `a_total{guest="x"}` with the labels' order as written.
pub(crate) fn parse(text: &str) -> BTreeMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("it ends with EOF");
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    // Name and type of the family that is being read.
    let mut family: Option<(String, String)> = None;
    let mut described: Option<String> = None;
    let mut histogram = Histogram::default();
    for line in body.split_terminator('\n') {
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').expect(line);
            let (name, value) = rest.split_once(' ').expect(line);
            assert!(is_name(name), "{line}");
            match word {
                "HELP" => {
                    histogram.end();
                    assert!(!value.is_empty() && !value.contains('\\'), "{line}");
                    described = Some(name.to_owned());
                }
                "TYPE" => {
                    assert_eq!(described.as_deref(), Some(name), "described first: {line}");
                    assert!(matches!(value, "counter" | "gauge" | "histogram"), "{line}");
                    assert!(families.insert(name.to_owned()), "twice: {line}");
                    family = Some((name.to_owned(), value.to_owned()));
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect(line));
        let (family, kind) = family.as_ref().expect(line);
        let suffix = name.strip_prefix(family.as_str()).expect(line);
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        assert!(suffixes.contains(&suffix), "{line}");
        let rest = match rest.strip_prefix('{') {
            Some(labels) => after_labels(labels, line),
            None => rest,
        };
        let value = rest.strip_prefix(' ').expect(line);
        assert!(!value.contains(' '), "neither time nor exemplar: {line}");
        let value: f64 = value.parse().expect(line);
        assert!(
            value.is_finite() && (kind == "gauge" || value >= 0.0),
            "{line}"
        );
        let series = line[..line.len() - rest.len()].to_owned();
        match suffix {
            "_bucket" => histogram.add(&series, value),
            "_count" => histogram.count = value,
            _ => {}
        }
        assert!(samples.insert(series, value).is_none(), "twice: {line}");
    }
    histogram.end();
    samples
}

/// The histogram that is being read. Histograms without other labels only.
#[derive(Default)]
struct Histogram {
    /// Limit and count of the last bucket.
    last: Option<(f64, f64)>,
    count: f64,
}

impl Histogram {
    /// Both grow from one bucket to the next.
    fn add(&mut self, series: &str, count: f64) {
        let (_, limit) = series.split_once("{le=\"").expect(series);
        let limit: f64 = limit.strip_suffix("\"}").expect(series).parse().unwrap();
        if let Some((before, fewer)) = self.last.replace((limit, count)) {
            assert!(limit > before && count >= fewer, "{series}");
        }
    }

    /// The last bucket has everything.
    fn end(&mut self) {
        if let Some(last) = self.last.take() {
            assert_eq!(last, (f64::INFINITY, self.count));
        }
    }
}

/// The text after the labels.
fn after_labels<'a>(mut rest: &'a str, line: &str) -> &'a str {
    let mut names = BTreeSet::new();
    loop {
        let (name, value) = rest.split_once("=\"").expect(line);
        assert!(is_name(name) && !name.contains(':'), "{line}");
        assert!(names.insert(name), "a label twice: {line}");
        let mut escaped = false;
        let end = value.find(|c| {
            if escaped {
                assert!(matches!(c, '\\' | '"' | 'n'), "{line}");
                escaped = false;
                return false;
            }
            escaped = c == '\\';
            c == '"'
        });
        rest = &value[end.expect(line) + 1..];
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        rest = rest.strip_prefix(',').expect(line);
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':');
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
