//! Which attributes of a launch a guest may give: those that name no object of this process.

use vgpu_protocol::op::LaunchAttribute;
use vgpu_protocol::status::ErrorCode;

use super::device::Rows;
use super::ranges::Ranges;
use super::{Refused, invalid, refused};

/// Whether a launch may have this attribute.
///
/// # Errors
/// E_UNSUPPORTED for one whose value names an event or a node of a graph, which would be an address in this process, and for
/// one that is not known, since it might; 1 for a window of memory that is not within one allocation of the session.
pub(super) fn check(attribute: &LaunchAttribute, ranges: &Ranges) -> Result<(), Refused> {
    let of_object = |what: &str| {
        let text = format!("launch attribute {} names {what}", attribute.id);
        Err(refused(ErrorCode::Unsupported, text))
    };
    match attribute.id {
        LaunchAttribute::IGNORE
        | LaunchAttribute::COOPERATIVE
        | LaunchAttribute::SYNCHRONIZATION_POLICY
        | LaunchAttribute::CLUSTER_DIMENSION
        | LaunchAttribute::CLUSTER_SCHEDULING_POLICY_PREFERENCE
        | LaunchAttribute::PROGRAMMATIC_STREAM_SERIALIZATION
        | LaunchAttribute::PRIORITY
        | LaunchAttribute::MEM_SYNC_DOMAIN_MAP
        | LaunchAttribute::MEM_SYNC_DOMAIN
        | LaunchAttribute::PREFERRED_CLUSTER_DIMENSION
        | LaunchAttribute::PREFERRED_SHARED_MEMORY_CARVEOUT
        | LaunchAttribute::NVLINK_UTIL_CENTRIC_SCHEDULING => Ok(()),
        LaunchAttribute::ACCESS_POLICY_WINDOW => {
            // CUaccessPolicyWindow begins with base_ptr and num_bytes.
            let number =
                |at| u64::from(attribute.word(at)) | u64::from(attribute.word(at + 1)) << 32;
            match (number(0), number(2)) {
                // It ends one.
                (_, 0) => Ok(()),
                (base, bytes) => {
                    let window = ranges.check_rows(Rows::range(base, bytes));
                    window.map_err(|error| invalid(format!("an access policy window: {error}")))
                }
            }
        }
        LaunchAttribute::PROGRAMMATIC_EVENT | LaunchAttribute::LAUNCH_COMPLETION_EVENT => {
            of_object("an event")
        }
        LaunchAttribute::DEVICE_UPDATABLE_KERNEL_NODE => of_object("a node of a graph"),
        other => {
            let text = format!("launch attribute {other} is not known");
            Err(refused(ErrorCode::Unsupported, text))
        }
    }
}
