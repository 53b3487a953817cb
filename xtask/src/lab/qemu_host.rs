//! The [`Host`] that runs in QEMU.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::guest::GuestSpec;
use super::host::{Host, LIMIT, Output, Place, Xenstored};
use super::hypervisor::Xsm;
use super::qemu::Qemu;

/// Creating a guest takes 12–30 s on an idle machine.
const CREATE_LIMIT: Duration = Duration::from_secs(1300);

/// Xen in QEMU, booted.
pub(crate) struct QemuHost {
    machine: Qemu,
    xenstored: Xenstored,
    xsm: Xsm,
}

impl QemuHost {
    pub(crate) fn new(machine: Qemu, xenstored: Xenstored, xsm: Xsm) -> Self {
        QemuHost {
            machine,
            xenstored,
            xsm,
        }
    }

    /// See [`Qemu::spread_processors`].
    ///
    /// # Errors
    /// Those of [`Qemu::spread_processors`].
    pub(crate) fn spread_processors(&self) -> Result<()> {
        self.machine.spread_processors()
    }

    fn dom0(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.machine.exec(Place::Dom0, script, limit)
    }
}

impl Host for QemuHost {
    fn describe(&self) -> String {
        let silo = match self.xsm {
            Xsm::None => "",
            Xsm::Silo => "SILO and ",
        };
        format!("Xen 4.17 in QEMU with {silo}{}", self.xenstored)
    }

    fn unfit(&mut self) -> Option<String> {
        None
    }

    fn exec(&mut self, place: Place<'_>, script: &str, limit: Duration) -> Result<Output> {
        self.machine.exec(place, script, limit)
    }

    fn guest_create(&mut self, spec: &GuestSpec) -> Result<()> {
        eprintln!("lab: starting {} guest {}", spec.kind, spec.name);
        let (started, used) = (Instant::now(), self.processor_time());
        let output = self.dom0(&spec.shell_command(), CREATE_LIMIT)?;
        if !output.success() {
            // A guest that is merely too slow would keep its memory from all guests after it.
            let _ = self.guest_destroy(&spec.name);
            bail!("guest {} did not start: {}", spec.name, output.last_words());
        }
        eprintln!(
            "lab: {} is up after {:.1} s ({:.1} s of processor time)",
            spec.name,
            started.elapsed().as_secs_f32(),
            (self.processor_time() - used).as_secs_f32()
        );
        Ok(())
    }

    fn guest_destroy(&mut self, name: &str) -> Result<()> {
        self.dom0(&format!("guest_destroy {name}"), LIMIT)?.text()?;
        Ok(())
    }

    fn guest_domid(&mut self, name: &str) -> Result<u16> {
        let output = self.dom0(&format!("guest_domid {name}"), LIMIT)?;
        output
            .text()?
            .parse()
            .with_context(|| format!("the domain id of guest {name}"))
    }

    fn has_spare_guests(&self) -> bool {
        true
    }

    fn lacks_nothing(&self) -> bool {
        true
    }

    fn xsm(&self) -> Option<Xsm> {
        Some(self.xsm)
    }

    /// QEMU's emulation of nested paging now and then ends a PVH guest with a triple fault, which
    /// Xen reports on the console.
    fn guests_lost(&self) -> usize {
        let console = fs::read(self.machine.folder().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console)
            .matches("Triple fault")
            .count()
    }

    fn processor_time(&self) -> Duration {
        self.machine.processor_time()
    }

    fn save_logs(&mut self) -> Option<String> {
        let folder = self.machine.folder().to_owned();
        let script = "! [ -e /proc/$(cat /run/xenstored.pid) ] || { xl list; xenstore-ls -f; }; \
             xl dmesg | tail -n 100; dmesg | tail -n 100; ps; \
             for log in /var/log/xen/*.log /var/log/xen/console/*.log /run/lab/*.log \
                 /tmp/vgpu-lab/*/out /tmp/vgpu-lab/*/err; do \
                 echo \"== $log\"; tail -n 60 $log; done";
        if let Ok(output) = self.dom0(script, LIMIT) {
            let _ = fs::write(folder.join("dom0.txt"), output.stdout);
        }
        Some(folder.display().to_string())
    }
}
