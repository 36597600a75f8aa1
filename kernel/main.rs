// SPDX-License-Identifier: MIT OR GPL-2.0

//! RTP Manager's kernel engine: rings of packets shared with user space through `/dev/rtp_mgr`.
//!
//! | file | what lives there |
//! |---|---|
//! | `main.rs` | the module: its parameters, the device that it registers |
//! | [`device`] | file operations: what the kernel calls, made safe |
//! | [`control`] | ioctl: copying arguments in and out, which call does what |
//! | [`stream`] | a stream: state, ownership, readers; lock order and contexts |
//! | [`receive`] | a receive stream: engine under its lock, timer |
//! | [`engine`] | what runs under a stream's lock: intake, publishing, waking |
//! | [`registry`] | all streams: numbers, memory and streams per user |
//! | [`memory`] | the shared pages, and mapping them |
//! | [`transmit`] | the engine of a transmit stream: its thread's work |
//! | [`sink`] | where a transmit stream's packets go: UDP |
//! | [`source`] | where packets come from: the trait for devices, the simulated one |
//! | [`primitives`] | bottom-half lock, wait queue, timer, clocks |
//! | [`compat`] | what an older kernel's API lacks or has wrong |
//! | [`thread`] | kernel threads and where they sleep |
//! | [`allocator`] | memory for what a user sizes: without it they fail, and nobody is killed |
//! | [`clock`] | the machine's clocks in a stream's status page |
//! | [`ring`] | the ring core, the same files as in user space |

#![deny(unsafe_op_in_unsafe_fn)]

use kernel::prelude::*;

mod allocator;
mod clock;
mod compat;
mod control;
mod device;
mod engine;
mod memory;
mod primitives;
mod receive;
mod registry;
mod ring;
mod sink;
mod source;
mod stream;
mod thread;
mod transmit;

module! {
    type: RtpManager,
    name: "rtp_mgr",
    authors: ["The RTP Manager developers"],
    description: "Rings of RTP packets shared with user space",
    license: "Dual MIT/GPL",
    params: {
        ring_order: u32 {
            default: 10,
            description: "Positions of a ring as a power of two, when its user does not say (4 to 20)",
        },
        max_ring_mb: u32 {
            default: 256,
            description: "Memory of one stream, in MiB, at most",
        },
        max_user_mb: u32 {
            default: 1024,
            description: "Memory of all streams of one user, in MiB, at most",
        },
        max_user_streams: u32 {
            default: 256,
            description: "Streams of one user, at most (0: no limit)",
        },
        dma_interval_ms: u32 {
            default: 50,
            description: "Time between bursts of the simulated DMA engine, when its user does not say (1 to 10000)",
        },
    },
}

/// A parameter's value: lent by 7.2, copied by 7.3.
fn number(value: impl core::borrow::Borrow<u32>) -> u32 {
    *value.borrow()
}

/// The parameters, checked once at load.
#[derive(Clone, Copy)]
pub(crate) struct Parameters {
    pub(crate) ring_order: u32,
    pub(crate) max_ring_bytes: u64,
    pub(crate) max_user_bytes: u64,
    /// 0: no limit.
    pub(crate) max_user_streams: u32,
    pub(crate) interval_ns: u64,
}

impl Parameters {
    /// As the module was loaded with.
    pub(crate) fn get() -> Self {
        let mb = |value: u32| u64::from(value).saturating_mul(1 << 20);
        Self {
            ring_order: number(module_parameters::ring_order.value()),
            max_ring_bytes: mb(number(module_parameters::max_ring_mb.value())),
            max_user_bytes: mb(number(module_parameters::max_user_mb.value())),
            max_user_streams: number(module_parameters::max_user_streams.value()),
            interval_ns: u64::from(number(module_parameters::dma_interval_ms.value()))
                .saturating_mul(1_000_000),
        }
    }

    fn check(&self) -> Result {
        let orders = u32::from(ring::abi::RING_ORDER_MIN)..=u32::from(ring::abi::RING_ORDER_MAX);
        if !orders.contains(&self.ring_order) {
            pr_err!("ring_order={} is not in 4 to 20\n", self.ring_order);
            return Err(EINVAL);
        }
        if self.max_ring_bytes == 0 || self.max_user_bytes == 0 {
            pr_err!("max_ring_mb and max_user_mb are at least 1\n");
            return Err(EINVAL);
        }
        if !source::INTERVALS_NS.contains(&self.interval_ns) {
            pr_err!("dma_interval_ms is not in 1 to 10000\n");
            return Err(EINVAL);
        }
        Ok(())
    }
}

struct RtpManager {
    _device: device::Registration,
}

impl kernel::Module for RtpManager {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Parameters::get().check()?;
        registry::init();
        let device = device::Registration::new()?;
        pr_info!(
            "loaded, ABI {}.{}, ring_order {}\n",
            ring::abi::ABI_MAJOR,
            ring::abi::ABI_MINOR,
            Parameters::get().ring_order
        );
        Ok(Self { _device: device })
    }
}

impl Drop for RtpManager {
    fn drop(&mut self) {
        sink::flight::wait_for_completions();
    }
}
