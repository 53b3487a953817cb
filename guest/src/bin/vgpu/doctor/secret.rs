//! Checks for `tcp:` beside a mediator: the secret.

use std::path::PathBuf;

use vgpu_cli::diagnosis::Check;
use vgpu_guest::{Options, SECRET_FILE};
use vgpu_socket_transport::Secret;

/// Whether there is a file with a secret, and whose.
pub(super) fn check(options: &Options) -> Check {
    const NAME: &str = "secret";
    let named = || std::env::var_os(SECRET_FILE).filter(|path| !path.is_empty());
    let file = options.secret_file.clone();
    let Some(path) = file.or_else(|| named().map(PathBuf::from)) else {
        return Check::bad(
            NAME,
            "none is configured, and tcp: needs one",
            format!(
                "make one with vgpuctl secret NAME where the mediator is, and name the file with \
                 its line by --secret-file or {SECRET_FILE}"
            ),
        );
    };
    match Secret::read(&path) {
        Ok(secret) => Check::good(
            NAME,
            format!("that of {}, in {}", secret.name(), path.display()),
        ),
        Err(error) => Check::bad(NAME, error.to_string(), error.advice()),
    }
}
