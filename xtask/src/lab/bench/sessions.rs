//! `cargo xtask bench sessions`: whole sessions over every endpoint that needs no Xen, on this
//! machine, beside those over `local:` in the same run.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::figures::median;
use super::flags::Sessions;
use super::write_json;
use crate::mediator::{self, Mediator};

/// Elements of the vectors, from small to large.
const ELEMENTS: [u64; 3] = [1, 1 << 20, 1 << 24];

/// Figures by row and the endpoint's scheme.
type Figures = BTreeMap<(String, &'static str), Vec<f64>>;

/// Runs it.
///
/// # Errors
/// A program failed, or a sum was wrong.
pub(super) fn run(options: &Sessions) -> Result<()> {
    let rounds = options.rounds.unwrap_or(5).max(1);
    let programs = match &options.programs {
        Some(folder) => folder.clone(),
        None => mediator::build_release()?,
    };
    // In memory if there is such a place: files are compared, not disks.
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() {
        base
    } else {
        Path::new("/tmp")
    };
    let directory = base.join(format!("vgpu-bench-{}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let outcome = measure(&programs, &directory, rounds);
    // It is in memory and small; leftovers end with the machine.
    let _ = fs::remove_dir_all(&directory);
    let figures = outcome?;
    println!("{}", table(&figures));
    let all: Vec<Value> = figures
        .iter()
        .map(|((row, scheme), figures)| {
            json!({"row": row, "endpoint": scheme, "microseconds": figures})
        })
        .collect();
    let all = json!({"bench": "sessions", "rounds": rounds, "figures": all});
    write_json(options.json.as_deref(), &all)
}

/// The endpoints, `local:` first.
const SCHEMES: [&str; 4] = ["local", "unix", "tcp", "file"];

fn measure(programs: &Path, directory: &Path, rounds: usize) -> Result<Figures> {
    let secret = make_secret(programs, directory)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let exchange = directory.join("exchange");
    let endpoints = SCHEMES.map(|scheme| match scheme {
        "tcp" => format!("tcp:127.0.0.1:{port}"),
        "file" => format!("file:{}", exchange.display()),
        _ => format!("{scheme}:{}/{scheme}.sock", directory.display()),
    });
    let listen = endpoints.join(",");
    let secret = secret.to_str().context("a path of text")?;
    let more = ["--executor", "cpu", "--secrets", secret];
    let mut mediator = Mediator::start(programs, directory, &listen, &more)?;
    mediator.wait_until_ready(programs, &endpoints[0])?;
    let mut figures = Figures::new();
    for round in 1..=rounds {
        eprintln!("bench: round {round} of {rounds}");
        for (scheme, endpoint) in SCHEMES.iter().zip(&endpoints) {
            for (row, microseconds) in once(programs, endpoint, secret)? {
                figures.entry((row, scheme)).or_default().push(microseconds);
            }
        }
    }
    mediator.stop()?;
    Ok(figures)
}

/// One client's secret, which is also the mediator's whole file.
pub(super) fn make_secret(programs: &Path, directory: &Path) -> Result<PathBuf> {
    let made = Command::new(programs.join("vgpuctl"))
        .args(["secret", "bench"])
        .output()
        .context("cannot start vgpuctl")?;
    ensure!(made.status.success(), "vgpuctl secret: {}", made.status);
    let path = directory.join("secret");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::io::Write::write_all(&mut file, &made.stdout)?;
    Ok(path)
}

/// `vgpu bench` over one endpoint: rows with their microseconds.
pub(super) fn once(programs: &Path, endpoint: &str, secret: &str) -> Result<Vec<(String, f64)>> {
    let sizes = ELEMENTS.map(|elements| elements.to_string()).join(",");
    let output = Command::new(programs.join("vgpu"))
        .args(["--endpoint", endpoint, "--secret-file", secret, "--json"])
        .args(["bench", "--repeats", "5", "--pings", "500"])
        .args(["--sizes", &sizes])
        .output()
        .context("cannot start vgpu")?;
    ensure!(
        output.status.success(),
        "vgpu bench over {endpoint}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    rows(&String::from_utf8_lossy(&output.stdout))
}

/// Parses the output of `vgpu --json bench`.
pub(super) fn rows(text: &str) -> Result<Vec<(String, f64)>> {
    text.lines().map(row).collect()
}

fn row(line: &str) -> Result<(String, f64)> {
    let found: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    let figure = |name: &str| {
        found[name]
            .as_f64()
            .with_context(|| format!("no {name} in {line}"))
    };
    Ok(match found["kind"].as_str() {
        Some("round_trip") => ("round trip of 16 bytes".to_owned(), figure("median_us")?),
        _ => (
            format!(
                "vector add of {:>9}",
                found["elements"].as_u64().unwrap_or(0)
            ),
            figure("median_seconds")? * 1e6,
        ),
    })
}

/// Medians, and their ratios to those over `local:`.
fn table(figures: &Figures) -> String {
    let mut rows: Vec<&String> = figures.keys().map(|(row, _)| row).collect();
    rows.dedup();
    let mut text = format!("{:24}", "µs (times local:)");
    for scheme in SCHEMES {
        text += &format!("{:>22}", format!("{scheme}:"));
    }
    for row in rows {
        let of = |scheme| figures.get(&(row.clone(), scheme)).map(|all| median(all));
        let local = of(SCHEMES[0]).unwrap_or(f64::NAN);
        text += &format!("\n{row:24}");
        for scheme in SCHEMES {
            let time = of(scheme).unwrap_or(f64::NAN);
            let cell = format!("{time:.1} ({:.2})", time / local);
            text += &format!("{cell:>22}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_compared() {
        let ping = r#"{"kind":"round_trip","bytes":16,"median_us":2.5}"#;
        assert_eq!(row(ping).unwrap(), ("round trip of 16 bytes".into(), 2.5));
        let add = r#"{"kind":"vector_add","elements":7,"median_seconds":0.25}"#;
        assert_eq!(row(add).unwrap().1, 250_000.0);
        assert!(row("{}").is_err());
        let mut figures = Figures::new();
        figures.insert(("r".into(), "local"), vec![2.0]);
        figures.insert(("r".into(), "tcp"), vec![5.0, 1.0, 3.0]);
        assert!(
            table(&figures).contains("3.0 (1.50)"),
            "{}",
            table(&figures)
        );
    }
}
