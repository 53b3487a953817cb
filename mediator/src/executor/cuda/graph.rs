//! Graphs that the driver launches as a whole.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{
    CUDA_KERNEL_NODE_PARAMS_v1, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS, CUgraph, CUgraphExec,
    CUgraphNode, CUmemorytype, CUstream,
};

use super::super::gpu::device::{Launch, Node, NodeWork, Rows};
use super::attributes;
use super::device::Device;
use super::driver::{CallError, check, size, with_extra};
use super::handles::Function;

/// A graph that can be launched.
#[derive(Clone)]
pub(in crate::executor) struct Graph(Arc<Exec>);

struct Exec {
    exec: CUgraphExec,
    may_print: bool,
    device: Arc<Device>,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Exec {}
// SAFETY: the driver locks for itself.
unsafe impl Sync for Exec {}

impl Drop for Exec {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this one's own handle, not used afterwards; no launch of it is under way: `Queue` keeps it for that long.
            unsafe { (self.device.driver().graph_exec_destroy)(self.exec) };
        }
    }
}

impl Graph {
    /// A graph with these nodes. The context is current in this thread.
    pub(super) fn new(device: &Arc<Device>, nodes: &[Node<Function>]) -> Result<Self, CallError> {
        let plan = Plan::new(device)?;
        let mut made = Vec::with_capacity(nodes.len());
        let mut may_print = false;
        for node in nodes {
            let before = node.before.into_iter().flatten();
            let before: Vec<CUgraphNode> = before.map(|at| made[at as usize]).collect();
            if let NodeWork::Launch(launch) = &node.work {
                may_print |= launch.function.may_print;
            }
            made.push(plan.add(&before, &node.work)?);
        }
        let mut exec = ptr::null_mut();
        // SAFETY: the output is writable, the graph live and the context current.
        let code = unsafe { (device.driver().graph_instantiate)(&mut exec, plan.graph, 0) };
        check(code, "cuGraphInstantiateWithFlags")?;
        Ok(Self(Arc::new(Exec {
            exec,
            may_print,
            device: Arc::clone(device),
        })))
    }

    /// Whether one of its kernels may print.
    pub(super) fn may_print(&self) -> bool {
        self.0.may_print
    }

    /// Tells it from other graphs and functions that are there.
    pub(super) fn address(&self) -> usize {
        self.0.exec.addr()
    }

    /// Launches it in a stream of the same device, whose context is current.
    ///
    /// # Safety
    /// Its kernels' modules are loaded and what its copies and fills name is allocated until it is done, and this is kept.
    pub(super) unsafe fn launch(&self, stream: CUstream) -> Result<(), CallError> {
        // SAFETY: both are live: the caller's promise.
        let code = unsafe { (self.0.device.driver().graph_launch)(self.0.exec, stream) };
        check(code, "cuGraphLaunch")
    }
}

/// A graph that is being made.
struct Plan<'d> {
    graph: CUgraph,
    device: &'d Device,
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        if !self.device.is_lost() {
            // SAFETY: this one's own handle, not used afterwards; what was instantiated from it is apart.
            unsafe { (self.device.driver().graph_destroy)(self.graph) };
        }
    }
}

impl<'d> Plan<'d> {
    fn new(device: &'d Device) -> Result<Self, CallError> {
        let mut graph = ptr::null_mut();
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (device.driver().graph_create)(&mut graph, 0) };
        check(code, "cuGraphCreate")?;
        Ok(Self { graph, device })
    }

    fn add(
        &self,
        before: &[CUgraphNode],
        work: &NodeWork<Function>,
    ) -> Result<CUgraphNode, CallError> {
        let (driver, context) = (self.device.driver(), self.device.context());
        let (graph, first, count) = (self.graph, before.as_ptr(), before.len());
        let mut node = ptr::null_mut();
        let made = &mut node;
        // SAFETY: the output is writable, the graph, its nodes and the context live; functions are of loaded modules, and
        // their parameters as many bytes as they have. The driver reads all that it is given before it returns.
        let (code, call) = unsafe {
            match work {
                NodeWork::Nothing => (
                    (driver.graph_add_empty_node)(made, graph, first, count),
                    "cuGraphAddEmptyNode",
                ),
                NodeWork::Launch(launch) => (
                    with_extra(&launch.parameters, |extra| -> c_int {
                        let kernel = CUDA_KERNEL_NODE_PARAMS_v1 {
                            extra,
                            ..kernel_of(launch)
                        };
                        (driver.graph_add_kernel_node)(made, graph, first, count, &raw const kernel)
                    }),
                    "cuGraphAddKernelNode",
                ),
                NodeWork::Copy { to, from } => {
                    let copy = copy_of(*to, *from);
                    let add = driver.graph_add_memcpy_node;
                    (
                        add(made, graph, first, count, &raw const copy, context),
                        "cuGraphAddMemcpyNode",
                    )
                }
                NodeWork::Fill {
                    to,
                    value,
                    element_bytes,
                } => {
                    let fill = fill_of(*to, *value, *element_bytes);
                    let add = driver.graph_add_memset_node;
                    (
                        add(made, graph, first, count, &raw const fill, context),
                        "cuGraphAddMemsetNode",
                    )
                }
            }
        };
        check(code, call)?;
        if let NodeWork::Launch(launch) = work {
            self.set_attributes(node, launch)?;
        }
        Ok(node)
    }

    /// Gives a kernel's node the attributes of its launch. Where a node cannot have one, the graph is launched in pieces.
    fn set_attributes(
        &self,
        node: CUgraphNode,
        launch: &Launch<Function>,
    ) -> Result<(), CallError> {
        let set = self.device.driver().graph_kernel_node_set_attribute;
        for attribute in attributes::of(launch) {
            // SAFETY: the node is a kernel's and live; the value has as many bytes as one has, is aligned as one, and names no
            // object. The driver copies it before it returns.
            let code = unsafe { set(node, attribute.id, attribute.value.as_ptr().cast()) };
            check(code, "cuGraphKernelNodeSetAttribute")?;
        }
        Ok(())
    }
}

fn kernel_of(launch: &Launch<Function>) -> CUDA_KERNEL_NODE_PARAMS_v1 {
    CUDA_KERNEL_NODE_PARAMS_v1 {
        func: launch.function.function,
        gridDimX: launch.grid[0],
        gridDimY: launch.grid[1],
        gridDimZ: launch.grid[2],
        blockDimX: launch.block[0],
        blockDimY: launch.block[1],
        blockDimZ: launch.block[2],
        sharedMemBytes: launch.shared_bytes,
        kernelParams: ptr::null_mut(),
        extra: ptr::null_mut(),
    }
}

fn copy_of(to: Rows, from: Rows) -> CUDA_MEMCPY3D {
    CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: ptr::null(),
        srcDevice: from.address,
        srcArray: ptr::null_mut(),
        reserved0: ptr::null_mut(),
        srcPitch: size(from.pitch),
        srcHeight: size(from.height),
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: to.address,
        dstArray: ptr::null_mut(),
        reserved1: ptr::null_mut(),
        dstPitch: size(to.pitch),
        dstHeight: size(to.height),
        WidthInBytes: size(to.width),
        Height: size(to.height),
        Depth: 1,
    }
}

fn fill_of(to: Rows, value: u32, element_bytes: u8) -> CUDA_MEMSET_NODE_PARAMS {
    CUDA_MEMSET_NODE_PARAMS {
        dst: to.address,
        pitch: size(to.pitch),
        // The low bits of the value, as of a smaller element.
        value: value & (u32::MAX >> (32 - 8 * u32::from(element_bytes.min(4)))),
        elementSize: element_bytes.into(),
        width: size(to.width / u64::from(element_bytes)),
        height: size(to.height),
    }
}
