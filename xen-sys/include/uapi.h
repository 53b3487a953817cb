/*
 * What `cargo xtask bindgen` reads for xen-sys/src/generated/uapi.rs: the kernel's device
 * interfaces and Xen's wire formats, all from the copies beside this file.
 */
#include <stdint.h>
#include <sys/ioctl.h> /* _IOC */

/* gntdev.h and evtchn.h expect these two from the includer; the widths are xen/xen.h's. */
typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;

#include "xen/gntalloc.h"
#include "xen/gntdev.h"
#include "xen/evtchn.h"
#include "xen/io/libxenvchan.h"
#include "xen/io/xs_wire.h"
