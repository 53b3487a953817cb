//! An sshd of our own on 127.0.0.1, with keys of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Time limit for it to listen, on a busy machine too.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// It and its folder are removed when dropped.
pub(crate) struct Sshd {
    child: Child,
    folder: PathBuf,
    port: SocketAddr,
}

impl Sshd {
    /// Starts one, which admits the present user.
    ///
    /// # Errors
    /// The package openssh-server is missing, or sshd does not listen.
    pub(crate) fn start() -> Result<Self> {
        let program = crate::apt::which("sshd")
            .or_else(|| Some(PathBuf::from("/usr/sbin/sshd")).filter(|file| file.is_file()))
            .context("no sshd\n  install the package openssh-server")?;
        // This port was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let name = format!("vgpu-sshd-{}-{}", std::process::id(), port.port());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for key in ["host", "user"] {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(key))
                .status()
                .context("running ssh-keygen")?;
            ensure!(status.success(), "ssh-keygen ended with {status}");
        }
        let path = |name: &str| folder.join(name).display().to_string();
        let _ = fs::create_dir_all("/run/sshd"); // as root, sshd insists on it
        let settings = [
            format!("ListenAddress={port}"),
            format!("HostKey={}", path("host")),
            format!("AuthorizedKeysFile={}", path("user.pub")),
            "StrictModes=no".to_owned(),
            "UsePAM=no".to_owned(),
            "PidFile=none".to_owned(),
            "PermitRootLogin=yes".to_owned(),
            "Subsystem=sftp internal-sftp".to_owned(),
        ];
        let mut command = Command::new(program);
        command.args(["-D", "-q", "-f", "/dev/null"]);
        for setting in &settings {
            command.args(["-o", setting]);
        }
        let child = command.spawn().context("starting sshd")?;
        let sshd = Sshd {
            child,
            folder,
            port,
        };
        let deadline = Instant::now() + LISTENS_WITHIN;
        while TcpStream::connect(port).is_err() {
            ensure!(Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(sshd)
    }

    /// The port, as an argument.
    pub(crate) fn port(&self) -> String {
        self.port.port().to_string()
    }

    /// `NAME=VALUE` settings with which ssh and sshfs log in.
    pub(crate) fn client_settings(&self) -> Vec<String> {
        let identity = format!("IdentityFile={}", self.folder.join("user").display());
        let others = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "IdentitiesOnly=yes",
        ];
        let mut settings = vec![identity];
        settings.extend(others.map(str::to_owned));
        settings
    }

    /// ssh's arguments, without the address.
    #[cfg(test)]
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["-p".to_owned(), self.port()];
        for setting in self.client_settings() {
            arguments.extend(["-o".to_owned(), setting]);
        }
        arguments
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
