//! The device of a mediator that is played from a script: memory, and a kernel that adds two vectors.

use std::collections::BTreeMap;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{
    CopyFromDevice, CopyFromDeviceReply, CopyToDevice, Launch, MemoryAllocate, MemoryAllocateReply,
    ModuleFunctionReply, ModuleLoadReply, Request, SynchronizeReply,
};

use super::{Script, Step};

#[derive(Debug, Default)]
pub(crate) struct Device {
    memory: BTreeMap<u64, u8>,
    next: u64,
}

impl Device {
    /// Answers a request that is about the device.
    pub(crate) fn answer(
        &mut self,
        script: &mut Script,
        request: &FrameHeader,
        body: &[u8],
    ) -> Step<()> {
        match Request::decode(request.op, body).expect("a sound request") {
            Request::MemoryAllocate(MemoryAllocate { bytes }) => {
                self.next += 1 << 32;
                assert!(bytes.get() <= 1 << 32);
                script.reply(request, &MemoryAllocateReply { address: self.next })
            }
            Request::ModuleLoad(_) => {
                script.input(request)?;
                script.reply(request, &ModuleLoadReply {})
            }
            Request::ModuleFunction(_) => script.reply(
                request,
                &ModuleFunctionReply {
                    function: 0,
                    parameter_bytes: 20,
                    attributes: Default::default(),
                    parameters: Default::default(),
                },
            ),
            Request::CopyToDevice(CopyToDevice { to, .. }) => {
                let data = script.input(request)?;
                self.memory.extend((to..).zip(data));
                Ok(())
            }
            Request::Launch(launch) => {
                self.add(&launch);
                Ok(())
            }
            Request::CopyFromDevice(CopyFromDevice { from, bytes, .. }) => {
                let data: Vec<u8> = (from..from + bytes.get())
                    .map(|at| self.memory.get(&at).copied().unwrap_or(0))
                    .collect();
                for part in data.chunks(60_000) {
                    script.data(request, part)?;
                }
                script.reply(request, &CopyFromDeviceReply { device_ns: 5 })
            }
            Request::Synchronize(_) => script.reply(request, &SynchronizeReply { device_ns: 0 }),
            other => {
                // What is given back is given back quietly.
                assert!(request.is_quiet(), "{other:?}");
                Ok(())
            }
        }
    }

    /// `a[i] += b[i]`.
    fn add(&mut self, launch: &Launch) {
        let number = |at: usize| -> u64 {
            let bytes = launch.parameters.as_slice();
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
        };
        let n = launch.parameters.as_slice()[16..20]
            .try_into()
            .expect("4 bytes");
        let (a, b, n) = (number(0), number(8), u32::from_le_bytes(n));
        for i in (0..u64::from(n)).map(|i| 4 * i) {
            let float = |from: u64| {
                let bytes = [0, 1, 2, 3].map(|k| self.memory[&(from + i + k)]);
                f32::from_le_bytes(bytes)
            };
            let sum = (float(a) + float(b)).to_le_bytes();
            self.memory.extend((a + i..).zip(sum));
        }
    }
}
