//! `vchan bench-serve`: executes the commands of one `vchan bench`, then exits.

use std::time::Instant;

use vchan::Channel;
use vgpu_cli::Failure;

use super::messages::{COMMAND_BYTES, Command, Kind, POINT_LIMIT};
use super::options::set_spin;
use super::read_exact::read_exact;
use super::words;

pub(crate) fn run(mut channel: Channel, spin: Option<u64>) -> Result<(), Failure> {
    set_spin(&mut channel, spin);
    let mut buf = Vec::new();
    loop {
        let deadline = Instant::now() + POINT_LIMIT;
        let mut bytes = [0; COMMAND_BYTES];
        read_exact(&mut channel, &mut bytes, deadline)?;
        let command = Command::decode(&bytes).map_err(|what| {
            Failure::new(what, "connect with `vchan bench`, of the same version")
        })?;
        let deadline = Instant::now() + POINT_LIMIT;
        buf.resize(command.message_bytes as usize, 0x5A);
        match command.kind {
            Kind::Sink => {
                for _ in 0..command.count {
                    read_exact(&mut channel, &mut buf, deadline)?;
                }
                let total = command.count * u64::from(command.message_bytes);
                channel.write_all(&total.to_le_bytes(), deadline)?;
            }
            Kind::Source => {
                for _ in 0..command.count {
                    channel.write_all(&buf, deadline)?;
                }
            }
            Kind::Echo => {
                for _ in 0..command.count {
                    read_exact(&mut channel, &mut buf, deadline)?;
                    channel.write_all(&buf, deadline)?;
                }
            }
            Kind::Produce(access) => {
                let sum = words::consume(&mut channel, access, command.count, &mut buf, deadline)?;
                let total = command.count * u64::from(command.message_bytes);
                channel.write_all(&total.to_le_bytes(), deadline)?;
                channel.write_all(&sum.to_le_bytes(), deadline)?;
            }
            Kind::Consume(access) => {
                words::produce(&mut channel, access, command.count, &mut buf, deadline)?;
            }
            Kind::End => return Ok(channel.close(deadline)?),
        }
    }
}
