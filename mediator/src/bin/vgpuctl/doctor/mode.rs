//! The requirements of a mediator here: those of the running one, or of the configuration for the next.

use std::path::Path;

use vgpu_cli::Failure;
use vgpu_mediator::cli::Flags;
use vgpu_mediator::config::{Config, INSTALLED, WorkerSettings};
use vgpu_mediator::control::Status;
use vgpu_mediator::executor::ExecutorChoice;
use vgpu_transport::endpoint::Endpoint;

/// The parts of a configuration that decide what must be there.
#[derive(Debug)]
pub(super) struct Mode {
    /// Where these are from, for people.
    pub(super) source: String,
    pub(super) listen: Vec<String>,
    pub(super) executor: ExecutorChoice,
    pub(super) worker: WorkerSettings,
    /// The configuration, if it was read here.
    pub(super) config: Option<Config>,
}

impl Mode {
    /// That of the file after `--config`; else of the running mediator; else of the installed file; else
    /// of a mediator as packages configure it.
    ///
    /// # Errors
    /// The configuration is wrong.
    pub(super) fn find(file: Option<&Path>, status: Option<&Status>) -> Result<Self, Failure> {
        let installed = Path::new(INSTALLED);
        match (file, status) {
            (Some(file), _) => Self::of_file(file),
            (None, Some(status)) => Ok(Self {
                source: "the running mediator".to_owned(),
                listen: status.listen.clone(),
                // An older mediator does not tell; "auto" needs nothing.
                executor: status.executor_choice.parse().unwrap_or_default(),
                worker: WorkerSettings::default(),
                config: None,
            }),
            (None, None) if installed.exists() => Self::of_file(installed),
            (None, None) => Ok(Self {
                source: format!("the usual configuration, since there is no {INSTALLED}"),
                listen: vec![Endpoint::Xen.to_string()],
                executor: ExecutorChoice::Auto,
                worker: WorkerSettings::default(),
                config: None,
            }),
        }
    }

    fn of_file(file: &Path) -> Result<Self, Failure> {
        let flags = Flags {
            config: Some(file.to_owned()),
            ..Flags::default()
        };
        let config = Config::load(&flags)?;
        Ok(Self {
            source: file.display().to_string(),
            listen: config.listen.iter().map(Endpoint::to_string).collect(),
            executor: config.executor.clone(),
            worker: config.worker.clone(),
            config: Some(config),
        })
    }

    /// Whether guests, or the mediator with the GPU, are reached over Xen.
    pub(super) fn uses_xen(&self) -> bool {
        let relays = match &self.executor {
            ExecutorChoice::Relay(endpoint) => {
                matches!(endpoint, Endpoint::Xen | Endpoint::XenDomain(_))
            }
            _ => false,
        };
        relays || self.listens_on_xen()
    }

    /// Whether guests are reached over Xen.
    pub(super) fn listens_on_xen(&self) -> bool {
        let xen = Endpoint::Xen.to_string();
        self.listen.contains(&xen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(text: &str) -> Mode {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.toml");
        std::fs::write(&file, text).unwrap();
        Mode::find(Some(&file), None).unwrap()
    }

    #[test]
    fn xen_is_needed_where_guests_or_the_gpu_are_reached_over_it() {
        assert!(mode("listen = ['local:/a', 'xen:']").uses_xen());
        assert!(!mode("listen = ['local:/a', 'file:/b']").uses_xen());
        let relay = mode("listen = 'local:/a'\nexecutor = 'relay:xen:gpu'");
        assert!(relay.uses_xen() && !relay.listens_on_xen());
    }
}
