//! A session and its device.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use vgpu_guest::{CompileAt, CompileOptions, Device as Guest, LaunchConfig, StreamOptions};

use crate::error::{argument, detached};
use crate::objects::{Event, Function, Memory, Module, Place, Shape, Slot, Stream};
use crate::session::{connect, endpoints, options};
use crate::view::{Pinned, View, locked};

/// A session with a mediator, and its device. What takes a stream sends to the default stream where that is `None`.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Device(Slot<Guest>);

impl Device {
    fn guest(&self, py: Python<'_>) -> PyResult<Guest> {
        self.0.get(py, "device")
    }

    /// The device, or a stream of it, on this lane.
    fn queue(&self, py: Python<'_>, stream: Option<&Stream>) -> PyResult<Queue> {
        let guest = self.guest(py)?;
        let Some(stream) = stream else {
            return Ok(Queue::Default(guest));
        };
        let stream = stream.0.get(py, "stream")?;
        detached(py, || guest.on_stream(&stream)).map(Queue::Stream)
    }
}

enum Queue {
    Default(Guest),
    Stream(vgpu_guest::Stream),
}

impl std::ops::Deref for Queue {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        match self {
            Self::Default(guest) => guest,
            Self::Stream(stream) => stream,
        }
    }
}

#[pymethods]
impl Device {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "those of Python's class")]
    fn open(
        py: Python<'_>,
        endpoint: Option<&str>,
        timeout: Option<f64>,
        stall_timeout: Option<f64>,
        client_name: Option<String>,
        secret_file: Option<PathBuf>,
        ordinal: u32,
    ) -> PyResult<Self> {
        let options = options(py, timeout, stall_timeout, client_name, secret_file)?;
        let endpoints = endpoints(py, endpoint)?;
        let guest = detached(py, || {
            let client = connect(endpoints.as_deref(), &options)?;
            match ordinal {
                0 => Guest::new(client),
                _ => Guest::with_ordinal(client, ordinal),
            }
        })?;
        Ok(Self(Slot::new(guest)))
    }

    /// Ends the session, if it has not ended.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.0.take() {
            Some(guest) => detached(py, || guest.goodbye()),
            None => Ok(()),
        }
    }

    fn lane(&self, py: Python<'_>) -> PyResult<Self> {
        let guest = self.guest(py)?;
        let lane = detached(py, || guest.lane())?;
        Ok(Self(Slot::new(lane)))
    }

    fn name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.guest(py)?.name().to_owned())
    }

    /// How many devices this guest may use.
    fn device_count(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.guest(py)?.info().devices)
    }

    fn compute_capability(&self, py: Python<'_>) -> PyResult<(i32, i32)> {
        Ok(self.guest(py)?.compute_capability())
    }

    fn attribute(&self, py: Python<'_>, number: u32) -> PyResult<Option<i32>> {
        Ok(self.guest(py)?.attribute(number))
    }

    /// Executor, driver, the reason for the executor, mediator.
    fn mediator(&self, py: Python<'_>) -> PyResult<(String, String, String, String)> {
        let guest = self.guest(py)?;
        let info = detached(py, || guest.with_client(|client| client.info()))?;
        let text = |text: &str| text.to_owned();
        Ok((
            text(&info.executor),
            text(&info.driver),
            text(&info.reason),
            text(&info.mediator),
        ))
    }

    /// The ids of the requests of the last call that did not wait for the device.
    fn last_requests(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        let guest = self.guest(py)?;
        detached(py, || Ok(guest.last_requests()))
    }

    /// Free and total bytes.
    fn memory_info(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let guest = self.guest(py)?;
        detached(py, || guest.memory_info())
    }

    fn allocate(&self, py: Python<'_>, bytes: usize) -> PyResult<Memory> {
        let guest = self.guest(py)?;
        let buffer = detached(py, || guest.alloc(bytes))?;
        Ok(Memory(Slot::new(Arc::new(buffer))))
    }

    fn pinned(&self, py: Python<'_>, bytes: usize) -> PyResult<Pinned> {
        let guest = self.guest(py)?;
        let buffer = detached(py, || guest.alloc_pinned(bytes))?;
        Ok(Pinned::new(buffer))
    }

    /// Copies the first bytes of page-locked memory.
    fn copy_pinned_to_device(
        &self,
        py: Python<'_>,
        from: &Pinned,
        to: &Memory,
        bytes: usize,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, from) = (self.queue(py, stream)?, from.get(py)?);
        let mut to = to.part(py, bytes, 1)?;
        detached(py, || {
            queue.memcpy_htod_pinned(&locked(&from), ..bytes, &mut to)
        })
    }

    /// Copies to the first bytes of page-locked memory.
    fn copy_device_to_pinned(
        &self,
        py: Python<'_>,
        from: &Memory,
        to: &Pinned,
        bytes: usize,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, to) = (self.queue(py, stream)?, to.get(py)?);
        let from = from.part(py, bytes, 1)?;
        detached(py, || {
            queue.memcpy_dtoh_pinned(&from, &mut locked(&to), ..bytes)
        })
    }

    fn copy_to_device(
        &self,
        py: Python<'_>,
        from: &Bound<'_, PyAny>,
        to: &Memory,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, from) = (self.queue(py, stream)?, View::new(from)?);
        let bytes = from.bytes();
        let mut to = to.part(py, bytes.len(), 1)?;
        detached(py, || queue.memcpy_htod(bytes, &mut to))
    }

    fn copy_from_device(
        &self,
        py: Python<'_>,
        from: &Memory,
        to: &Bound<'_, PyAny>,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, mut to) = (self.queue(py, stream)?, View::writable(to)?);
        let bytes = to.bytes_mut();
        let from = from.part(py, bytes.len(), 1)?;
        detached(py, || queue.memcpy_dtoh(&from, bytes))
    }

    /// Copies rows that lie behind each other.
    fn copy_rows_to_device(
        &self,
        py: Python<'_>,
        from: &Bound<'_, PyAny>,
        to: &Memory,
        place: Place,
        shape: (usize, usize),
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, from) = (self.queue(py, stream)?, View::new(from)?);
        let (width, height) = shape;
        let mut to = to.rows(py, place, Shape { width, height })?;
        let bytes = from.bytes();
        detached(py, || queue.memcpy_2d_htod(bytes, width, &mut to))
    }

    /// Copies rows, which then lie behind each other.
    fn copy_rows_from_device(
        &self,
        py: Python<'_>,
        from: &Memory,
        place: Place,
        to: &Bound<'_, PyAny>,
        shape: (usize, usize),
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, mut to) = (self.queue(py, stream)?, View::writable(to)?);
        let (width, height) = shape;
        let from = from.rows(py, place, Shape { width, height })?;
        let bytes = to.bytes_mut();
        detached(py, || queue.memcpy_2d_dtoh(&from, bytes, width))
    }

    #[allow(clippy::too_many_arguments, reason = "those of a copy of rows")]
    fn copy_rows_pinned_to_device(
        &self,
        py: Python<'_>,
        from: &Pinned,
        from_place: Place,
        to: &Memory,
        to_place: Place,
        shape: (usize, usize),
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, from) = (self.queue(py, stream)?, from.get(py)?);
        let (width, height) = shape;
        let shape = Shape { width, height };
        let mut to = to.rows(py, to_place, shape)?;
        let range = from_place.0..shape.end(py, from_place)?;
        detached(py, || {
            queue.memcpy_2d_htod_pinned(&locked(&from), range, from_place.1, &mut to)
        })
    }

    #[allow(clippy::too_many_arguments, reason = "those of a copy of rows")]
    fn copy_rows_device_to_pinned(
        &self,
        py: Python<'_>,
        from: &Memory,
        from_place: Place,
        to: &Pinned,
        to_place: Place,
        shape: (usize, usize),
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let (queue, to) = (self.queue(py, stream)?, to.get(py)?);
        let (width, height) = shape;
        let shape = Shape { width, height };
        let from = from.rows(py, from_place, shape)?;
        let range = to_place.0..shape.end(py, to_place)?;
        detached(py, || {
            queue.memcpy_2d_dtoh_pinned(&from, &mut locked(&to), range, to_place.1)
        })
    }

    fn copy_on_device(
        &self,
        py: Python<'_>,
        from: &Memory,
        to: &Memory,
        bytes: usize,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let queue = self.queue(py, stream)?;
        let (from, mut to) = (from.part(py, bytes, 1)?, to.part(py, bytes, 1)?);
        detached(py, || queue.memcpy_dtod::<u8>(&from, &mut to))
    }

    /// Sets elements of 1, 2 or 4 bytes to `value`.
    fn fill(
        &self,
        py: Python<'_>,
        to: &Memory,
        value: u32,
        element_bytes: usize,
        elements: usize,
        stream: Option<&Stream>,
    ) -> PyResult<()> {
        let queue = self.queue(py, stream)?;
        let mut to = to.part(py, elements, element_bytes)?;
        let [low, next, ..] = value.to_le_bytes();
        match element_bytes {
            1 => detached(py, || queue.memset(&mut to, low)),
            2 => detached(py, || {
                queue.memset(&mut to, u16::from_le_bytes([low, next]))
            }),
            4 => detached(py, || queue.memset(&mut to, value)),
            other => Err(argument(py, format!("elements of {other} bytes"))),
        }
    }

    fn load(&self, py: Python<'_>, image: &Bound<'_, PyAny>) -> PyResult<Module> {
        let (guest, image) = (self.guest(py)?, View::new(image)?);
        let image = image.bytes();
        let module = detached(py, || guest.load_module(image))?;
        Ok(Module(Slot::new(module)))
    }

    #[allow(clippy::too_many_arguments, reason = "those of a compilation")]
    fn compile(
        &self,
        py: Python<'_>,
        source: &str,
        name: String,
        capability: Option<u32>,
        standard: Option<String>,
        defines: Vec<(String, String)>,
        headers: Vec<(String, String)>,
        options: Vec<String>,
        at: &str,
    ) -> PyResult<Module> {
        let guest = self.guest(py)?;
        let options = CompileOptions {
            name,
            capability,
            use_fast_math: false,
            standard,
            defines,
            headers,
            options,
            at: match at {
                "any" => CompileAt::Any,
                "here" => CompileAt::Here,
                "mediator" => CompileAt::Mediator,
                other => {
                    let text = format!("'{other}' is neither 'any' nor 'here' nor 'mediator'");
                    return Err(argument(py, text));
                }
            },
        };
        let module = detached(py, || guest.compile_module(source, &options))?;
        Ok(Module(Slot::new(module)))
    }

    /// Kernels reach what is in `pinned` by its address among the arguments.
    #[allow(clippy::too_many_arguments, reason = "those of a launch")]
    fn launch(
        &self,
        py: Python<'_>,
        function: &Function,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        arguments: Vec<Vec<u8>>,
        shared_bytes: u32,
        stream: Option<&Stream>,
        pinned: Vec<Py<Pinned>>,
        cooperative: bool,
    ) -> PyResult<()> {
        let queue = self.queue(py, stream)?;
        let pinned = pinned.iter().map(|pinned| pinned.get().get(py));
        let pinned: Vec<_> = pinned.collect::<PyResult<_>>()?;
        let config = LaunchConfig {
            grid_dim: grid,
            block_dim: block,
            shared_mem_bytes: shared_bytes,
        };
        detached(py, || {
            for pinned in &pinned {
                locked(pinned).is_used_by_kernels_of(&queue)?;
            }
            let launch = queue.launch_builder(&function.0);
            let launch = arguments
                .iter()
                .fold(launch, |launch, bytes| launch.arg_bytes(bytes));
            match cooperative {
                true => launch.cooperative().launch(config),
                false => launch.launch(config),
            }
        })
    }

    /// Waits for all work of the session, or of a stream. Returns the seconds that the device ran kernels of the session.
    fn synchronize(&self, py: Python<'_>, stream: Option<&Stream>) -> PyResult<f64> {
        let queue = self.queue(py, stream)?;
        let time = detached(py, || match &queue {
            Queue::Default(guest) => guest.synchronize(),
            Queue::Stream(stream) => stream.synchronize(),
        })?;
        Ok(time.as_secs_f64())
    }

    fn stream(&self, py: Python<'_>, priority: i32, blocking: bool) -> PyResult<Stream> {
        let guest = self.guest(py)?;
        let options = StreamOptions {
            priority,
            non_blocking: !blocking,
        };
        let stream = detached(py, || guest.new_stream_with(options))?;
        Ok(Stream(Slot::new(stream)))
    }

    fn stream_done(&self, py: Python<'_>, stream: &Stream) -> PyResult<bool> {
        let (guest, stream) = (self.guest(py)?, stream.0.get(py, "stream")?);
        detached(py, || guest.on_stream(&stream)?.is_done())
    }

    fn event(&self, py: Python<'_>, timing: bool) -> PyResult<Event> {
        let guest = self.guest(py)?;
        let event = detached(py, || match timing {
            true => guest.new_event(),
            false => guest.new_event_without_timing(),
        })?;
        Ok(Event(Slot::new(Arc::new(event))))
    }

    fn record(&self, py: Python<'_>, event: &Event, stream: Option<&Stream>) -> PyResult<()> {
        let (queue, event) = (self.queue(py, stream)?, event.0.get(py, "event")?);
        detached(py, || queue.record(&event))
    }

    fn wait(&self, py: Python<'_>, event: &Event, stream: Option<&Stream>) -> PyResult<()> {
        let (queue, event) = (self.queue(py, stream)?, event.0.get(py, "event")?);
        detached(py, || queue.wait(&event))
    }

    /// Adds arrays of 32-bit floats.
    fn vector_add(
        &self,
        py: Python<'_>,
        a: &Bound<'_, PyAny>,
        b: &Bound<'_, PyAny>,
        sum: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let guest = self.guest(py)?;
        let (a, b, mut sum) = (View::new(a)?, View::new(b)?, View::writable(sum)?);
        if sum.overlaps(&a) || sum.overlaps(&b) {
            return Err(argument(py, "the sum overlaps a or b"));
        }
        let floats = (a.floats(), b.floats(), sum.floats_mut());
        let (Some(a), Some(b), Some(sum)) = floats else {
            return Err(argument(py, "an array is not one of aligned 32-bit floats"));
        };
        detached(py, || {
            guest
                .with_client(|client| client.vector_add(a, b, sum))
                .map(drop)
        })
    }
}
