//! Memory that the kernel reads and writes by itself: receive buffers and the bytes of sends.
//!
//! All pointers that leave this crate are made here. A buffer is at any time with the kernel, in a completion not
//! yet served, or lent to the machine; only its holder may touch it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, opcode, squeue};

use crate::driver::GATHER_BYTES;

/// The group number of the receive buffers; a ring has one group.
pub(super) const GROUP: u16 = 0;

/// Size of one receive buffer.
const BUFFER_BYTES: usize = 8 * 1024;

/// Receive buffers of a thread, a power of two; with `BUFFER_BYTES` 2 MiB for all its sockets together.
const BUFFERS: u16 = 256;

/// The system's page size, at which a buffer ring must start, is at most this.
const PAGE_BYTES: usize = 64 * 1024;

/// Parts that one operation may send at most (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// Parts that a sending kept for reuse has room for at most; with their slices that is 768 bytes.
const REUSED_PARTS_MAX: usize = 16;

/// Bytes that one operation may send at most.
const SEND_BYTES_MAX: usize = 1 << 30;

/// The ring of buffer descriptors and the buffers.
struct Memory {
    ring: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
}

// SAFETY: the pointers are to memory that this value owns, and it may be freed from any thread.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` only gives addresses; who may use them is governed by `Buffers` and `Lent`.
unsafe impl Sync for Memory {}

impl Memory {
    fn ring_layout() -> Layout {
        let bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        Layout::from_size_align(bytes, PAGE_BYTES).expect("the layout is a constant that fits")
    }

    fn bytes_layout() -> Layout {
        let bytes = usize::from(BUFFERS) * BUFFER_BYTES;
        Layout::from_size_align(bytes, PAGE_BYTES).expect("the layout is a constant that fits")
    }

    fn new() -> Memory {
        let zeroed = |layout: Layout| {
            // SAFETY: neither layout has size 0.
            let pointer = unsafe { alloc_zeroed(layout) };
            NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
        };
        Memory {
            ring: zeroed(Memory::ring_layout()).cast(),
            bytes: zeroed(Memory::bytes_layout()),
        }
    }

    fn buffer(&self, number: u16) -> *mut u8 {
        assert!(number < BUFFERS, "the kernel names buffers it was given");
        // SAFETY: the offset is within the allocation, as just checked.
        unsafe { self.bytes.as_ptr().add(usize::from(number) * BUFFER_BYTES) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: both were allocated with these layouts, and nobody else has this value any more.
        unsafe {
            dealloc(self.ring.as_ptr().cast(), Memory::ring_layout());
            dealloc(self.bytes.as_ptr(), Memory::bytes_layout());
        }
    }
}

/// The driver's end of the receive buffers: gives them to the kernel.
pub(super) struct Buffers {
    memory: Arc<Memory>,
    tail: u16,
    /// Buffers with the kernel.
    free: u16,
}

/// The loop's end of the receive buffers: the one that the machine reads now.
pub(crate) struct Lent {
    memory: Arc<Memory>,
    buffer: Option<u16>,
}

impl Buffers {
    /// Makes buffers, registers them with `ring` and gives all to the kernel.
    pub(super) fn new(ring: &IoUring) -> io::Result<(Buffers, Lent)> {
        let memory = Arc::new(Memory::new());
        let address = memory.ring.as_ptr() as u64;
        // SAFETY: the memory holds `BUFFERS` zeroed entries and starts at a page; `Drop` of the driver frees it only
        // when no operation is left that could use it.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)?
        };
        let mut buffers = Buffers {
            memory: Arc::clone(&memory),
            tail: 0,
            free: 0,
        };
        for number in 0..BUFFERS {
            buffers.give_back(number);
        }
        Ok((buffers, Lent { memory, buffer: None }))
    }

    /// Gives a buffer to the kernel. It came from a completion and nobody uses it any more.
    pub(super) fn give_back(&mut self, number: u16) {
        let address = self.memory.buffer(number) as u64;
        // SAFETY: the masked tail is within the ring; entries from the tail on are the application's to write. The
        // field `resv` of the first entry, which is the tail itself, is written as an atomic only.
        unsafe {
            let entry = &mut *self
                .memory
                .ring
                .as_ptr()
                .add(usize::from(self.tail & (BUFFERS - 1)));
            entry.set_addr(address);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.memory.ring.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
        self.free += 1;
    }

    /// Notes that a completion brought a buffer.
    pub(super) fn taken(&mut self) {
        self.free -= 1;
    }

    /// True if the kernel has a buffer left for another receive.
    pub(super) fn any_free(&self) -> bool {
        self.free > 0
    }

    /// Lets the kernel keep the memory for ever: an operation that may write to it did not end.
    pub(super) fn leak(&self) {
        std::mem::forget(Arc::clone(&self.memory));
    }
}

impl Lent {
    /// Lends `length` bytes of the buffer `number`, which a completion brought.
    pub(super) fn take(&mut self, number: u16, length: usize) -> &mut [u8] {
        assert!(self.buffer.is_none(), "one buffer is lent at a time");
        assert!(length <= BUFFER_BYTES, "the kernel fills no more than the buffer");
        self.buffer = Some(number);
        // SAFETY: the kernel gave this buffer up with its completion and gets it again only in `Lent::give_back`,
        // which needs this borrow to be over. All its bytes were zeroed at first.
        unsafe { std::slice::from_raw_parts_mut(self.memory.buffer(number), length) }
    }

    /// Ends the loan, if there is one.
    pub(super) fn give_back(&mut self, buffers: &mut Buffers) {
        if let Some(number) = self.buffer.take() {
            buffers.give_back(number);
        }
    }
}

/// What a connection has in flight: bytes, and the headers that tell the kernel where they lie. Boxed by its owner, it
/// stays in place until the completion.
pub(super) struct Sending {
    parts: Vec<Bytes>,
    /// The first part that has not left completely, and how much of it has.
    first: usize,
    skip: usize,
    slices: Vec<libc::iovec>,
    header: libc::msghdr,
}

// SAFETY: the pointers within are to its own `parts` and `slices`, and are used by the kernel only.
unsafe impl Send for Sending {}

impl Default for Sending {
    fn default() -> Sending {
        // SAFETY: for this C structure all zeroes is a valid value, that of an empty message.
        let header = unsafe { std::mem::zeroed() };
        Sending {
            parts: Vec::new(),
            first: 0,
            skip: 0,
            slices: Vec::new(),
            header,
        }
    }
}

impl Sending {
    /// Adds parts of a write; small ones are put together.
    pub(super) fn fill(&mut self, parts: &[Bytes]) {
        let length = parts.iter().map(Bytes::len).sum();
        if parts.len() == 1 || length > GATHER_BYTES {
            self.parts.extend_from_slice(parts);
            return;
        }
        let mut gathered = Vec::with_capacity(length);
        parts.iter().for_each(|part| gathered.extend_from_slice(part));
        self.parts.push(gathered.into());
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.first = 0;
        self.skip = 0;
    }

    /// True if it is worth keeping when it is cleared.
    pub(super) fn is_small(&self) -> bool {
        self.parts.capacity().max(self.slices.capacity()) <= REUSED_PARTS_MAX
    }

    /// True if all has left.
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.parts.len()
    }

    /// Notes that the kernel took `length` bytes more.
    pub(super) fn advance(&mut self, length: usize) {
        self.skip += length;
        while let Some(part) = self.parts.get(self.first)
            && self.skip >= part.len()
        {
            self.skip -= part.len();
            self.first += 1;
        }
    }

    /// The operation that sends what has not left yet. This value must stay in place, and keep its parts, until its
    /// completion is in.
    pub(super) fn operation(&mut self, fd: Fd) -> squeue::Entry {
        // With `WAITALL` the kernel itself goes on after a short send.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let parts = &self.parts[self.first..];
        if let [part] = parts {
            let rest = &part[self.skip..];
            let length = rest.len().min(SEND_BYTES_MAX) as u32;
            return opcode::Send::new(fd, rest.as_ptr(), length).flags(flags).build();
        }
        self.slices.clear();
        self.slices
            .extend(parts.iter().take(SLICES_MAX).map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
        if let Some(slice) = self.slices.first_mut() {
            slice.iov_base = slice.iov_base.wrapping_byte_add(self.skip);
            slice.iov_len -= self.skip;
        }
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len() as _;
        opcode::SendMsg::new(fd, ptr::from_ref(&self.header))
            .flags(flags as u32)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_counts_over_the_edges_of_parts() {
        let mut sending = Sending::default();
        for part in ["abc", "de", "f"] {
            sending.fill(&[Bytes::from(part)]);
        }
        sending.advance(4);
        assert_eq!((sending.first, sending.skip), (1, 1));
        sending.advance(1);
        assert_eq!((sending.first, sending.skip), (2, 0));
        sending.advance(1);
        assert!(sending.is_empty());
    }
}
