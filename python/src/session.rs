//! How sessions are opened, and the devices that they can have.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use vgpu_guest::protocol::op::NO_ATTRIBUTE;
use vgpu_guest::{Client, Endpoint, Options, parse_list};

use crate::error::{argument, detached};

fn seconds(py: Python<'_>, seconds: f64) -> PyResult<Duration> {
    let time = Duration::try_from_secs_f64(seconds).ok();
    time.filter(|time| !time.is_zero())
        .ok_or_else(|| argument(py, format!("a time of {seconds} s")))
}

pub(crate) fn options(
    py: Python<'_>,
    timeout: Option<f64>,
    stall_timeout: Option<f64>,
    client_name: Option<String>,
    secret_file: Option<PathBuf>,
) -> PyResult<Options> {
    let mut options = Options::default();
    if let Some(time) = timeout {
        options.connect_timeout = seconds(py, time)?;
    }
    if let Some(time) = stall_timeout {
        options.stall_timeout = seconds(py, time)?;
    }
    if let Some(name) = client_name {
        options.client_name = name;
    }
    options.secret_file = secret_file;
    Ok(options)
}

pub(crate) fn endpoints(py: Python<'_>, list: Option<&str>) -> PyResult<Option<Vec<Endpoint>>> {
    let list = list.map(parse_list).transpose();
    list.map_err(|error| argument(py, error.to_string()))
}

pub(crate) fn connect(
    endpoints: Option<&[Endpoint]>,
    options: &Options,
) -> vgpu_guest::Result<Client> {
    match endpoints {
        Some(list) => Client::connect(list, options),
        None => Client::from_env(options),
    }
}

/// Name, bytes of memory, version of CUDA, UUID and attributes of each device, by a session of its own.
#[pyfunction]
#[allow(clippy::type_complexity, reason = "a tuple of Python's")]
pub(crate) fn devices(
    py: Python<'_>,
    endpoint: Option<&str>,
    timeout: Option<f64>,
    stall_timeout: Option<f64>,
    client_name: Option<String>,
    secret_file: Option<PathBuf>,
) -> PyResult<Vec<(String, u64, u32, Vec<u8>, Vec<Option<i32>>)>> {
    let options = options(py, timeout, stall_timeout, client_name, secret_file)?;
    let endpoints = endpoints(py, endpoint)?;
    let devices = detached(py, || {
        let mut client = connect(endpoints.as_deref(), &options)?;
        let devices = client.devices()?;
        client.goodbye()?;
        Ok(devices)
    })?;
    let described = devices.iter().map(|device| {
        let attributes = device.attributes.as_slice().iter();
        (
            device.name.to_string(),
            device.total_memory,
            device.driver_version,
            device.uuid.as_slice().to_vec(),
            attributes
                .map(|value| (*value != NO_ATTRIBUTE).then_some(*value))
                .collect(),
        )
    });
    Ok(described.collect())
}
