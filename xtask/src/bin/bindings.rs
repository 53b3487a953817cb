//! Writes `xen-sys/src/generated/`, or with `--check` proves it up to date: the program that `cargo
//! xtask bindgen` runs. Separate, so that xtask is not built a second time for it.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bindgen::{Builder, Formatter, MacroTypeVariation, RustEdition, RustTarget};

/// The origin of a generated file, and the items that are bound.
struct Source {
    /// File below `xen-sys/src/generated/`.
    output: &'static str,
    /// C text, so that the list of headers is here.
    header: &'static str,
    /// Debian package with the headers, if they are not vendored.
    package: Option<&'static str>,
    functions: &'static [&'static str],
    types: &'static [&'static str],
    variables: &'static [&'static str],
    /// Name of the struct that loads the library, and the header's own prefix.
    library: Option<&'static str>,
    /// Items taken from another generated file instead.
    imports: &'static [&'static str],
}

const SOURCES: &[Source] = &[
    Source {
        output: "uapi.rs",
        header: "#include <uapi.h>\n",
        package: None,
        functions: &[],
        types: &[
            "ioctl_.*",
            "vchan_interface",
            "xsd_sockmsg",
            "xsd_sockmsg_type",
        ],
        variables: &[
            "IOCTL_.*",
            "GNTALLOC_FLAG_WRITABLE",
            "UNMAP_NOTIFY_.*",
            "VCHAN_NOTIFY_.*",
            "XENSTORE_.*_MAX",
        ],
        library: None,
        imports: &[],
    },
    Source {
        output: "toollog.rs",
        header: "#include <xentoollog.h>\n",
        package: Some("libxen-dev"),
        functions: &[],
        types: &["xentoollog_logger"],
        variables: &[],
        library: None,
        imports: &[],
    },
    Source {
        output: "gnttab.rs",
        header: "#include <xengnttab.h>\n",
        package: Some("libxen-dev"),
        functions: &[
            "xengnttab_(open|close|fd|map_domain_grant_refs|map_grant_ref_notify|unmap)",
            "xengntshr_(open|close|fd|share_pages|share_page_notify|unshare)",
        ],
        types: &[],
        variables: &[],
        library: Some("LibXenGnttab"),
        imports: &["xentoollog_logger"],
    },
    Source {
        output: "evtchn.rs",
        header: "#include <xenevtchn.h>\n",
        package: Some("libxen-dev"),
        functions: &[
            "xenevtchn_(open|close|fd|notify|bind_unbound_port|bind_interdomain)",
            "xenevtchn_(unbind|pending|unmask|restrict)",
        ],
        types: &[],
        variables: &[],
        library: Some("LibXenEvtchn"),
        imports: &["xentoollog_logger"],
    },
    Source {
        output: "ctrl.rs",
        header: "#include <xenctrl.h>\n",
        package: Some("libxen-dev"),
        functions: &["xc_interface_(open|close)", "xc_domain_getinfolist"],
        types: &[],
        variables: &["XEN_DOMINF_.*", "XEN_DOMCTL_INTERFACE_VERSION"],
        library: Some("LibXenCtrl"),
        imports: &["xentoollog_logger"],
    },
];

const NEEDS_CLANG: &str =
    "install libclang and its headers: apt-get install libclang1-14 libclang-common-14-dev";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent")?;
    run(root, std::env::args().any(|argument| argument == "--check"))
}

/// Regenerates the bindings below `root`, or with `check` compares them with the headers.
fn run(root: &Path, check: bool) -> Result<()> {
    let clang = clang_version()?;
    let folder = root.join("xen-sys/src/generated");
    let mut stale = Vec::new();
    for source in SOURCES {
        let path = folder.join(source.output);
        let text = generate(root, source)?;
        let committed = fs::read_to_string(&path).unwrap_or_default();
        if text == committed {
            continue;
        }
        if check {
            stale.push(difference(source.output, &committed, &text));
        } else {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("bindgen: wrote xen-sys/src/generated/{}", source.output);
        }
    }
    ensure!(
        stale.is_empty(),
        "bindings differ from the headers ({clang}):\n{}\nrun `cargo xtask bindgen` and commit the result",
        stale.join("\n")
    );
    println!(
        "bindgen: {} files match the headers ({clang})",
        SOURCES.len()
    );
    Ok(())
}

/// Loads libclang; the bindgen crate reports its absence by a panic only.
fn clang_version() -> Result<String> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let version = panic::catch_unwind(bindgen::clang_version);
    panic::set_hook(hook);
    match version {
        Ok(version) => Ok(version.full.trim().to_owned()),
        Err(_) => bail!("bindgen needs libclang and cannot load it\n{NEEDS_CLANG}"),
    }
}

fn generate(root: &Path, source: &Source) -> Result<String> {
    // The macro fallback leaves precompiled headers in this folder.
    let scratch: PathBuf = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("bindgen");
    fs::create_dir_all(&scratch)?;
    let wrapper = scratch.join(source.output).with_extension("wrapper.h");
    fs::write(&wrapper, source.header)?;

    let target = RustTarget::stable(85, 0)
        .ok()
        .context("bindgen knows no Rust 1.85")?;
    let mut builder: Builder = bindgen::builder()
        .header(path_text(&wrapper)?)
        .clang_arg(format!("-I{}", path_text(&root.join("xen-sys/include"))?))
        // One target whatever the machine: the interfaces are the same on all of them.
        .clang_arg("--target=x86_64-unknown-linux-gnu")
        .rust_target(target)
        .rust_edition(RustEdition::Edition2024)
        .formatter(Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(root.join("rustfmt.toml")))
        .clang_macro_fallback()
        .clang_macro_fallback_build_dir(&scratch)
        .default_macro_constant_type(MacroTypeVariation::Unsigned)
        .use_core()
        .wrap_unsafe_ops(true)
        // Some of the headers are LGPL: names and layouts only, no comments.
        .generate_comments(false);
    for name in source.functions {
        builder = builder.allowlist_function(name);
    }
    for name in source.types {
        builder = builder.allowlist_type(name);
    }
    for name in source.variables {
        builder = builder.allowlist_var(name);
    }
    for name in source.imports {
        builder = builder
            .blocklist_type(name)
            .raw_line(format!("pub use super::toollog::{name};"));
    }
    if let Some(library) = source.library {
        builder = builder
            .dynamic_library_name(library)
            .dynamic_link_require_all(true);
    }
    let bindings = builder.generate().map_err(|error| {
        let error = error.to_string();
        let error = error.trim_end();
        let hint = match source.package {
            Some(package) => format!("install the headers: apt-get install {package}"),
            None => NEEDS_CLANG.to_owned(),
        };
        anyhow::anyhow!("bindgen of {} failed: {error}\n{hint}", source.output)
    })?;
    Ok(bindings.to_string())
}

fn path_text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The first line that differs, in words.
fn difference(name: &str, committed: &str, generated: &str) -> String {
    let mut old = committed.lines();
    let mut new = generated.lines();
    let mut number = 0;
    loop {
        number += 1;
        let (old, new) = (old.next(), new.next());
        if old != new || old.is_none() {
            return format!(
                "  {name}:{number}: committed `{}`, headers give `{}`",
                old.unwrap_or("(end of file)"),
                new.unwrap_or("(end of file)")
            );
        }
    }
}
