//! Graphs: work that is recorded once and launched many times.

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::{
    GraphInstantiate, GraphLaunch, StreamBeginCapture, StreamCaptureInfo, StreamEndCapture,
};

use super::{Device, Dropped, Stream, explained, lock};
use crate::data::Data;
use crate::error::Result;

/// Limits on other threads, which are lanes here, while a stream captures (`CUstreamCaptureMode`). What CUDA counts as
/// unsafe meanwhile is allocating memory outside of a stream's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptureMode {
    /// No thread does what is unsafe.
    #[default]
    Global = 0,
    /// The thread that captures does not.
    ThreadLocal = 1,
    /// All may, and any thread ends the capture.
    Relaxed = 2,
}

/// Whether a stream captures (`CUstreamCaptureStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureStatus {
    /// It does not.
    None,
    /// It does.
    Active,
    /// It does, but an error has made the capture invalid, so that its end will fail.
    Invalidated,
}

/// Work that was captured: kernels, copies within the device and fills, of one stream or of several that wait for each
/// other's events. Destroyed when it is dropped; what was instantiated from it stays.
///
/// A graph names kernels and memory, and does not keep them: those that are gone when it is launched make the launch
/// fail.
///
/// ```no_run
/// # use vgpu_guest::{CaptureMode, Client, Device, LaunchConfig, Options};
/// # let device = Device::new(Client::from_env(&Options::default())?)?;
/// # let module = device.load_module(&[])?;
/// # let step = module.load_function("step")?;
/// let data = device.alloc_zeros::<f32>(1000)?;
/// let stream = device.new_stream()?;
/// stream.begin_capture(CaptureMode::Global)?;
/// for _ in 0..100 {
///     let launch = stream.launch_builder(&step).arg(&data);
///     launch.launch(LaunchConfig::for_num_elems(1000))?;
/// }
/// let graph = stream.end_capture()?.instantiate()?;
/// for _ in 0..1000 {
///     graph.launch(&stream)?;
/// }
/// stream.synchronize()?;
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
#[derive(Debug)]
pub struct Graph {
    device: Device,
    handle: Handle,
    nodes: u32,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.drop_on_device(Dropped::Graph(self.handle));
    }
}

/// A graph that can be launched. Destroyed when it is dropped, once its launches are done.
#[derive(Debug)]
pub struct GraphExec {
    device: Device,
    handle: Handle,
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        self.device.drop_on_device(Dropped::GraphExec(self.handle));
    }
}

impl Stream {
    /// Begins a capture: what is sent to this stream from now on is recorded and not done, until
    /// [`end_capture`](Self::end_capture). So is what is sent to a stream after it has waited for an event that was
    /// recorded here; this one must have waited for it when the capture ends.
    ///
    /// An operation that cannot be recorded makes the capture invalid: copies from and to this side, waits, memory in
    /// the order of a stream that captures, and other graphs.
    ///
    /// # Errors
    /// The session failed. A stream that is capturing already is reported later.
    pub fn begin_capture(&self, mode: CaptureMode) -> Result<()> {
        let request = StreamBeginCapture {
            stream: self.stream_ref(),
            mode: mode as u8,
        };
        self.send("begin a capture", request)
    }

    /// Ends the capture that was begun in this stream.
    ///
    /// # Errors
    /// The stream is not capturing (`CUDA_ERROR_ILLEGAL_STATE`); something has made the capture invalid
    /// (`CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`), which [`Error::failures`](crate::Error::failures) names; a stream has
    /// work for which this one does not wait (`CUDA_ERROR_STREAM_CAPTURE_UNJOINED`); the session failed. The capture is
    /// over all the same, but where it was begun in another stream or by another thread.
    pub fn end_capture(&self) -> Result<Graph> {
        const DOING: &str = "end a capture";
        let handle = lock(&self.shared.session.graphs).mint();
        let Some(handle) = handle else {
            return Err(self.wrong(DOING, "as many graphs as this session may have"));
        };
        // Given back also where it is none: it fails until then.
        let mut graph = Graph {
            device: self.base(),
            handle,
            nodes: 0,
        };
        let request = StreamEndCapture {
            stream: self.stream_ref(),
            graph: handle,
        };
        graph.nodes = self.ask(DOING, request)?.nodes;
        Ok(graph)
    }

    /// Whether this stream captures.
    ///
    /// # Errors
    /// The session failed.
    pub fn capture_status(&self) -> Result<CaptureStatus> {
        let stream = self.stream_ref();
        let reply = self.ask("look at a capture", StreamCaptureInfo { stream })?;
        Ok(match reply.status {
            0 => CaptureStatus::None,
            1 => CaptureStatus::Active,
            _ => CaptureStatus::Invalidated,
        })
    }
}

impl Graph {
    /// How many kernels, copies and fills it has.
    pub fn len(&self) -> usize {
        self.nodes as usize
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// Makes it ready to be launched.
    ///
    /// # Errors
    /// As many as this session may have are there; the session failed.
    pub fn instantiate(&self) -> Result<GraphExec> {
        const DOING: &str = "instantiate a graph";
        let handle = lock(&self.device.shared.session.graph_execs).mint();
        let Some(handle) = handle else {
            let what = "as many graphs as this session may have";
            return Err(self.device.wrong(DOING, what));
        };
        let exec = GraphExec {
            device: self.device.clone(),
            handle,
        };
        let request = GraphInstantiate {
            graph: self.handle,
            exec: handle,
            flags: 0,
        };
        self.device.ask(DOING, request)?;
        Ok(exec)
    }
}

impl GraphExec {
    const LAUNCH: &str = "launch a graph";

    /// Launches it in the order of `stream`, or of a device's default stream, once its launch before is done; does not wait.
    /// A later failure is the error of the next [`synchronize`](Device::synchronize) or copy from the device, in the name
    /// of this launch.
    ///
    /// # Errors
    /// The session failed.
    pub fn launch(&self, stream: &Device) -> Result<()> {
        let launch = self.request(stream)?;
        stream.send_with(Self::LAUNCH, launch, &mut Data::none())
    }

    /// Launches it and waits until the device has all of it in its queue: what is wrong with the launch itself, such as
    /// memory that is gone, is the error of this call.
    ///
    /// # Errors
    /// Those of [`launch`](Self::launch); the device does not take it.
    pub fn launch_checked(&self, stream: &Device) -> Result<()> {
        let launch = self.request(stream)?;
        let mut client = stream.client()?;
        let reply = client.request_noted(Self::LAUNCH, launch);
        explained(&mut client, reply).map(drop)
    }

    fn request(&self, stream: &Device) -> Result<GraphLaunch> {
        stream.check_session(Self::LAUNCH, &self.device)?;
        Ok(GraphLaunch {
            exec: self.handle,
            stream: stream.stream_ref(),
        })
    }
}
