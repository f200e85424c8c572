//! Addresses that the kernel reads or writes while an accept or a connect is in flight.

use std::mem::size_of;
use std::net::SocketAddr;
use std::ptr::NonNull;

use crate::socket;

struct Raw {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

/// One address at a place of its own. Held by a raw pointer, as the kernel writes through another one.
pub(super) struct Addr {
    raw: NonNull<Raw>,
}

impl Addr {
    /// Room for any address.
    pub fn room() -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let storage = unsafe { std::mem::zeroed() };
        Self::boxed(Raw { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t })
    }

    /// The kernel's form of `addr`.
    pub fn of(addr: SocketAddr) -> Self {
        let (storage, len) = socket::to_raw(addr);
        Self::boxed(Raw { storage, len })
    }

    fn boxed(raw: Raw) -> Self {
        Self { raw: NonNull::from(Box::leak(Box::new(raw))) }
    }

    /// Where the address is.
    pub fn storage(&self) -> *mut libc::sockaddr {
        // SAFETY: the allocation lives as long as `self`; only the place is computed, nothing is read.
        unsafe { (&raw mut (*self.raw.as_ptr()).storage).cast() }
    }

    /// Where its length is.
    pub fn len_place(&self) -> *mut libc::socklen_t {
        // SAFETY: as above.
        unsafe { &raw mut (*self.raw.as_ptr()).len }
    }

    /// Bytes of the address.
    pub fn len(&self) -> libc::socklen_t {
        // SAFETY: the allocation lives, and the kernel changes lengths of accepts only, which never ask this.
        unsafe { self.len_place().read() }
    }

    /// The address, once the operation has come back.
    pub fn read(&self) -> SocketAddr {
        // SAFETY: the allocation lives, and the kernel is done with it.
        socket::from_raw(unsafe { &(*self.raw.as_ptr()).storage })
    }
}

impl Drop for Addr {
    fn drop(&mut self) {
        // SAFETY: made by `boxed` and dropped once; the edge drops it only after its operation came back.
        drop(unsafe { Box::from_raw(self.raw.as_ptr()) });
    }
}
