//! Thin wrappers over bpf(2) and membarrier(2) for what aya does not offer: batches, memory-mapped arrays, layouts, link info
//! and test runs of any program by its descriptor.
//!
//! Keys and values are bytes here; types come with [`crate::kernel`]. Errors are the kernel's.

use std::{
    ffi::{CString, c_char, c_long},
    fmt, io, mem,
    ops::Deref,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
    time::Duration,
};

use aya_obj::generated::{
    BPF_F_BEFORE, BPF_F_MMAPABLE, BPF_NOEXIST, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info,
    bpf_link_type, bpf_map_info,
    bpf_map_type::{self, *},
    bpf_prog_info, bpf_prog_type,
};

use crate::{expedite, node::NodeError};

/// Says what was tried when something fails.
pub(crate) trait Doing<T> {
    /// Turns the error into [`NodeError::Kernel`].
    fn doing<D: Into<String>>(self, doing: impl FnOnce() -> D) -> Result<T, NodeError>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing<D: Into<String>>(self, doing: impl FnOnce() -> D) -> Result<T, NodeError> {
        self.map_err(|why| NodeError::Kernel { doing: doing().into(), why: why.to_string() })
    }
}

/// ENOTSUPP, which the C library does not know: the map's type lacks the operation.
const ENOTSUPP: i32 = 524;

/// bpf(2).
fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<c_long> {
    // SAFETY: `attr` is a whole `bpf_attr`, zero where the caller set nothing; the callers below keep what its pointers lead to
    // alive, and as large as the command needs.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as c_long, ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for commands that return a descriptor.
fn bpf_fd(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(cmd, attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers and arrays of them, for which zero is a value.
    unsafe { mem::zeroed() }
}

fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A name as the kernel keeps it: cut at 15 characters.
fn object_name(name: &str) -> [c_char; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    out
}

/// Layout of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Type: a number of `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, for one CPU.
    pub value_size: u32,
    /// Largest number of entries.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    id: u32,
    shape: Shape,
    /// Bytes of a value as user space reads it: all CPUs, each rounded up to 8, for per-CPU maps.
    value_len: usize,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    /// Makes a map; `inner` is a sample of what a map of maps holds.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(name: &str, shape: &Shape, inner: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let mut attr = zeroed();
        // SAFETY: this member of the union is made of integers.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = shape.kind;
        create.key_size = shape.key_size;
        create.value_size = shape.value_size;
        create.max_entries = shape.max_entries;
        create.map_flags = shape.flags;
        create.inner_map_fd = inner.map_or(0, |fd| raw(&fd));
        create.map_name = object_name(name);
        Self::new(bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)?)
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// The kernel's; `NotFound` when nothing is pinned there, `InvalidInput` when it is no map.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        Self::new(obj_get(path)?)
    }

    /// Opens a map by its id, as an outer map names its inner ones. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn from_id(id: u32) -> io::Result<Self> {
        let mut attr = zeroed();
        attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
        Self::new(bpf_fd(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr)?)
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: bpf_map_info = info(&fd)?;
        let shape = Shape {
            kind: info.type_,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
        };
        let size = shape.value_size as usize;
        let value_len = if per_cpu(shape.kind) { size.next_multiple_of(8) * possible_cpus()? } else { size };
        Ok(Self { fd, id: info.id, shape, value_len })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its layout.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of a value as [`Self::get`] gives it: of per-CPU maps one part for each possible CPU, rounded up to 8 bytes.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// Pins it.
    ///
    /// # Errors
    /// The kernel's; `AlreadyExists` when something is there.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        obj_pin(&self.fd, path)
    }

    fn element(&self, cmd: bpf_cmd, key: *const u8, value: *mut u8, flags: u64) -> io::Result<()> {
        let mut attr = zeroed();
        // SAFETY: this member of the union is made of integers.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = raw(&self.fd);
        element.key = key.addr() as u64;
        element.__bindgen_anon_1.value = value.addr() as u64;
        element.flags = flags;
        bpf(cmd, &mut attr).map(drop)
    }

    /// Copies the value of a key; `false` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// When `key` or `value` have not the map's sizes.
    pub fn get(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), value.len());
        found(self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key.as_ptr(), value.as_mut_ptr(), 0))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// When `key` or `value` have not the map's sizes.
    pub fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key.len(), value.len());
        self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, key.as_ptr(), value.as_ptr().cast_mut(), 0)
    }

    /// Writes a value under a key that is not there; `false` when it is, and nothing is written.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// When `key` or `value` have not the map's sizes.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.check(key.len(), value.len());
        let flags = u64::from(BPF_NOEXIST);
        match self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, key.as_ptr(), value.as_ptr().cast_mut(), flags) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Removes a key; `false` when it was not there.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// When `key` has not the map's size.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), self.value_len);
        found(self.element(bpf_cmd::BPF_MAP_DELETE_ELEM, key.as_ptr(), ptr::null_mut(), 0))
    }

    fn check(&self, key: usize, value: usize) {
        // The kernel reads and writes as much as the map's layout says.
        assert_eq!((key, value), (self.shape.key_size as usize, self.value_len), "sizes of key and value");
    }

    /// One call of a batch operation: the number of entries done, and the error that ended it.
    fn batch(
        &self,
        cmd: bpf_cmd,
        cursor: Cursor<'_>,
        keys: *mut u8,
        values: *mut u8,
        count: u32,
    ) -> (usize, io::Result<()>) {
        let mut attr = zeroed();
        attr.batch.in_batch = cursor.from.map_or(0, |from| from.as_ptr().addr() as u64);
        attr.batch.out_batch = cursor.to.map_or(0, |to| to.as_mut_ptr().addr() as u64);
        attr.batch.keys = keys.addr() as u64;
        attr.batch.values = values.addr() as u64;
        attr.batch.count = count;
        attr.batch.map_fd = raw(&self.fd);
        let result = bpf(cmd, &mut attr).map(drop);
        // SAFETY: written above and by the kernel, an integer.
        let done = unsafe { attr.batch.count } as usize;
        // A command or type that the kernel does not know leaves the count as it was.
        let done = if result.as_ref().is_err_and(unsupported) { 0 } else { done };
        (done, result)
    }

    /// Writes many entries, `keys` and `values` one after the other, with one call where the kernel can.
    ///
    /// # Errors
    /// The kernel's; what stands before the entry that failed is written.
    ///
    /// # Panics
    /// When the lengths are not multiples of the map's sizes, or differ in number.
    pub fn put_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let (key, value) = (self.shape.key_size as usize, self.value_len);
        assert!(
            keys.len().is_multiple_of(key) && keys.len() / key * value == values.len(),
            "lengths of keys and values"
        );
        let count = keys.len() / key;
        if count == 0 {
            return Ok(());
        }
        let number = u32::try_from(count).map_err(io::Error::other)?;
        let (keys_at, values_at) = (keys.as_ptr().cast_mut(), values.as_ptr().cast_mut());
        match self.batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, Cursor::default(), keys_at, values_at, number) {
            (_, Err(e)) if unsupported(&e) => {
                keys.chunks_exact(key).zip(values.chunks_exact(value)).try_for_each(|(key, value)| self.put(key, value))
            }
            (_, result) => result,
        }
    }

    /// Removes many keys; those that are not there are no error.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// When the length is not a multiple of the map's key size.
    pub fn remove_batch(&self, mut keys: &[u8]) -> io::Result<()> {
        let key = self.shape.key_size as usize;
        assert!(keys.len().is_multiple_of(key), "length of keys");
        while !keys.is_empty() {
            let count = u32::try_from(keys.len() / key).map_err(io::Error::other)?;
            let (done, result) = self.batch(
                bpf_cmd::BPF_MAP_DELETE_BATCH,
                Cursor::default(),
                keys.as_ptr().cast_mut(),
                ptr::null_mut(),
                count,
            );
            match result {
                Ok(()) => return Ok(()),
                // A batch ends at the first key that is not there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    keys = keys.get((done + 1) * key..).unwrap_or_default();
                }
                Err(e) if unsupported(&e) => {
                    return keys.chunks_exact(key).try_for_each(|key| self.remove(key).map(drop));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// All entries, keys and values one after the other. Entries that come or go at the same time may be missing or there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (key, value) = (self.shape.key_size as usize, self.value_len);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        // A hash's batch holds whole buckets; one that does not fit gives ENOSPC.
        let mut room = ((1 << 20) / (key + value).max(1)).min(self.shape.max_entries as usize) + 64;
        // The cursor of a hash is a bucket number, that of others a key.
        let mut cursor: Option<Vec<u8>> = None;
        loop {
            let start = keys.len() / key;
            for (bytes, each) in [(&mut keys, key), (&mut values, value)] {
                let len = (start + room) * each;
                // Zeroed memory is cheaper than memory that is zeroed.
                if start == 0 { *bytes = vec![0; len] } else { bytes.resize(len, 0) }
            }
            let mut next = vec![0; key.max(4)];
            let (done, result) = self.batch(
                bpf_cmd::BPF_MAP_LOOKUP_BATCH,
                Cursor { from: cursor.as_deref(), to: Some(&mut next) },
                keys[start * key..].as_mut_ptr(),
                values[start * value..].as_mut_ptr(),
                u32::try_from(room).map_err(io::Error::other)?,
            );
            let no_space = result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOSPC));
            let end = if no_space { start } else { start + done };
            keys.truncate(end * key);
            values.truncate(end * value);
            match result {
                Ok(()) => cursor = Some(next),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((keys, values)),
                Err(_) if no_space => room *= 2,
                Err(e) if unsupported(&e) => return self.entries_one_by_one(),
                Err(e) => return Err(e),
            }
        }
    }

    fn entries_one_by_one(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut value = vec![0; self.value_len];
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.shape.key_size as usize];
            let from = key.as_ref().map_or(ptr::null(), Vec::as_ptr);
            if !found(self.element(bpf_cmd::BPF_MAP_GET_NEXT_KEY, from, next.as_mut_ptr(), 0))? {
                return Ok((keys, values));
            }
            if self.get(&next, &mut value)? {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value);
            }
            key = Some(next);
        }
    }

    /// Values of `count` indexes of an array from `first` on, one after the other.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` beyond the array.
    pub fn range(&self, first: u32, count: u32) -> io::Result<Vec<u8>> {
        if first.checked_add(count).is_none_or(|end| end > self.shape.max_entries) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the array"));
        }
        let mut values = vec![0; count as usize * self.value_len];
        let mut keys = vec![0; count as usize * 4];
        if count == 0 {
            return Ok(values);
        }
        let before = first.checked_sub(1).map(u32::to_ne_bytes);
        let mut next = [0; 4];
        let cursor = Cursor { from: before.as_ref().map(<[u8; 4]>::as_slice), to: Some(&mut next) };
        match self.batch(bpf_cmd::BPF_MAP_LOOKUP_BATCH, cursor, keys.as_mut_ptr(), values.as_mut_ptr(), count) {
            (done, Ok(())) if done == count as usize => {}
            // The end of the array is reported beside the entries before it.
            (done, Err(e)) if done == count as usize && e.kind() == io::ErrorKind::NotFound => {}
            (_, Err(e)) if !unsupported(&e) => return Err(e),
            _ => {
                for (index, value) in (first..).zip(values.chunks_exact_mut(self.value_len)) {
                    self.get(&index.to_ne_bytes(), value)?;
                }
            }
        }
        Ok(values)
    }
}

/// Where a batch of look-ups begins and where it tells how far it came.
#[derive(Default)]
struct Cursor<'a> {
    from: Option<&'a [u8]>,
    to: Option<&'a mut [u8]>,
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP))
}

fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

const fn per_cpu(kind: u32) -> bool {
    kind == BPF_MAP_TYPE_PERCPU_ARRAY as u32
        || kind == BPF_MAP_TYPE_PERCPU_HASH as u32
        || kind == BPF_MAP_TYPE_LRU_PERCPU_HASH as u32
}

/// CPUs that the kernel has made room for: parts of a per-CPU value.
///
/// # Errors
/// When /sys cannot be read.
pub fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Name of a map type, for messages.
#[must_use]
pub fn kind_name(kind: u32) -> String {
    bpf_map_type::try_from(kind).map_or_else(
        |_| format!("type {kind}"),
        |kind| format!("{kind:?}").trim_start_matches("BPF_MAP_TYPE_").to_lowercase(),
    )
}

/// A memory-mapped array of 8-byte words (`BPF_F_MMAPABLE`), unmapped when dropped.
#[derive(Debug)]
pub struct Words {
    words: NonNull<AtomicU64>,
    len: usize,
    mapped: usize,
}

// SAFETY: a shared mapping of atomics, which any thread may use and unmap.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps an array.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` when the map is no such array.
    pub fn map(map: &Map) -> io::Result<Self> {
        let shape = map.shape();
        if shape.kind != BPF_MAP_TYPE_ARRAY as u32 || shape.value_size != 8 || shape.flags & BPF_F_MMAPABLE == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no memory-mappable array of words"));
        }
        let len = shape.max_entries as usize;
        let page = usize::try_from(page_size()?).map_err(io::Error::other)?;
        let mapped = (len * 8).next_multiple_of(page);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))?;
        Ok(Self { words, len, mapped })
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, page-aligned, `len` words; shared memory is only touched as atomics.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; no reference to it outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.mapped) };
    }
}

fn page_size() -> io::Result<i64> {
    // SAFETY: no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if size > 0 { Ok(size) } else { Err(io::Error::last_os_error()) }
}

/// Pins a map, program or link.
///
/// # Errors
/// The kernel's; `AlreadyExists` when something is there.
pub fn obj_pin(fd: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr().addr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(fd);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at a path.
///
/// # Errors
/// The kernel's.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr().addr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Types that BPF_OBJ_GET_INFO_BY_FD fills.
trait Info {}
impl Info for bpf_map_info {}
impl Info for bpf_prog_info {}
impl Info for bpf_link_info {}

fn info<T: Info>(fd: &impl AsFd) -> io::Result<T> {
    // SAFETY: the types above are integers and arrays of them.
    let mut info: T = unsafe { mem::zeroed() };
    ask(fd, &mut info)?;
    Ok(info)
}

/// Fills `info`, in which the caller may have put buffers.
fn ask<T: Info>(fd: &impl AsFd, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed();
    attr.info.bpf_fd = raw(fd);
    attr.info.info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    attr.info.info = ptr::from_mut(info).addr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Id of a program.
///
/// # Errors
/// The kernel's.
pub fn program_id(fd: &impl AsFd) -> io::Result<u32> {
    Ok(info::<bpf_prog_info>(fd)?.id)
}

/// Whether the kernel has compiled a program; without its JIT compiler it is interpreted.
///
/// # Errors
/// The kernel's.
pub fn program_compiled(fd: &impl AsFd) -> io::Result<bool> {
    Ok(info::<bpf_prog_info>(fd)?.jited_prog_len != 0)
}

/// Name of any program by its id, as the kernel keeps it: at most 15 characters, and of what has none no character. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// The kernel's; `NotFound` when there is no such program.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let info: bpf_prog_info = info(&bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)?)?;
    let name = info.name.iter().take_while(|byte| **byte != 0).map(|byte| byte.cast_unsigned());
    Ok(String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned())
}

/// Ids of the TCX programs of a network device of the calling thread's namespace, in the order in which they run. XDP is told by rtnetlink.
///
/// # Errors
/// The kernel's; `InvalidInput` when it has no TCX, or for a kind that is not TCX.
pub fn tcx_programs(ifindex: u32, kind: LinkKind) -> io::Result<Vec<u32>> {
    let attach_type = match kind {
        LinkKind::TcxIngress => bpf_attach_type::BPF_TCX_INGRESS,
        LinkKind::TcxEgress => bpf_attach_type::BPF_TCX_EGRESS,
        LinkKind::XdpNative | LinkKind::XdpGeneric => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = zeroed();
        attr.query.__bindgen_anon_1.target_ifindex = ifindex;
        attr.query.attach_type = attach_type as u32;
        attr.query.prog_ids = ids.as_mut_ptr().addr() as u64;
        attr.query.__bindgen_anon_2.count = u32::try_from(ids.len()).map_err(io::Error::other)?;
        match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
            Ok(_) => {
                // SAFETY: written above and by the kernel, an integer.
                ids.truncate(unsafe { attr.query.__bindgen_anon_2.count } as usize);
                return Ok(ids);
            }
            // There were more.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(ids.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Ids of the maps that a program uses.
///
/// # Errors
/// The kernel's.
pub fn program_maps(fd: &impl AsFd) -> io::Result<Vec<u32>> {
    let first: bpf_prog_info = info(fd)?;
    let mut ids = vec![0; first.nr_map_ids as usize];
    // SAFETY: integers and arrays of them.
    let mut asked: bpf_prog_info = unsafe { mem::zeroed() };
    asked.nr_map_ids = first.nr_map_ids;
    asked.map_ids = ids.as_mut_ptr().addr() as u64;
    ask(fd, &mut asked)?;
    ids.truncate(asked.nr_map_ids as usize);
    Ok(ids)
}

/// What a link of ours holds on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Id of its program.
    pub program: u32,
    /// Index of the network device, in its own namespace; 0 when the device is gone.
    pub ifindex: u32,
}

/// Facts about a TCX or XDP link.
///
/// # Errors
/// The kernel's; `InvalidInput` for another sort of link.
pub fn link_facts(fd: &impl AsFd) -> io::Result<LinkFacts> {
    let info: bpf_link_info = info(fd)?;
    let ifindex = if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the member that belongs to the type, integers.
        unsafe { info.__bindgen_anon_1.tcx.ifindex }
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: as above.
        unsafe { info.__bindgen_anon_1.xdp.ifindex }
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a TCX nor an XDP link"));
    };
    Ok(LinkFacts { program: info.prog_id, ifindex })
}

/// What a link attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// TCX ingress, before every other program.
    TcxIngress,
    /// TCX egress, before every other program.
    TcxEgress,
    /// XDP in the driver.
    XdpNative,
    /// XDP behind the driver.
    XdpGeneric,
}

/// Attaches a program to a network device of the calling thread's namespace. Detached when the last descriptor and pin are gone.
///
/// # Errors
/// The kernel's; EINVAL when it does not know the kind, EBUSY when another program has the place.
pub fn link_create(program: &impl AsFd, ifindex: u32, kind: LinkKind) -> io::Result<OwnedFd> {
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let (attach_type, flags) = match kind {
        LinkKind::TcxIngress => (bpf_attach_type::BPF_TCX_INGRESS, BPF_F_BEFORE),
        LinkKind::TcxEgress => (bpf_attach_type::BPF_TCX_EGRESS, BPF_F_BEFORE),
        LinkKind::XdpNative => (bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
        LinkKind::XdpGeneric => (bpf_attach_type::BPF_XDP, XDP_FLAGS_SKB_MODE),
    };
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = attach_type as u32;
    attr.link_create.flags = flags;
    expedite::waiting(|| bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr))
}

/// Detaches a link at once. (When its last pin and descriptor go, the kernel does so too, but later.)
///
/// # Errors
/// The kernel's.
pub fn link_detach(fd: &impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = raw(fd);
    expedite::waiting(|| bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr)).map(drop)
}

/// Puts another program into a link, without a gap.
///
/// # Errors
/// The kernel's.
pub fn link_update(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Loads a TC program from instructions.
///
/// # Errors
/// The kernel's.
pub fn load_classifier(name: &str, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, name, instructions)
}

/// Loads an XDP program from instructions.
///
/// # Errors
/// The kernel's.
pub fn load_xdp(name: &str, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(bpf_prog_type::BPF_PROG_TYPE_XDP, name, instructions)
}

fn load(kind: bpf_prog_type, name: &str, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: this member of the union is made of integers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.insns = instructions.as_ptr().addr() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    load.license = c"GPL".as_ptr().addr() as u64;
    load.prog_name = object_name(name);
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// Context of a test run of a TC program: `struct __sk_buff`. The kernel refuses those fields that must be 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbContext {
    /// Must be 0.
    pub len_to_mark: [u32; 2],
    /// `skb->mark`.
    pub mark: u32,
    /// Must be 0.
    pub mark_to_priority: [u32; 5],
    /// `skb->priority`.
    pub priority: u32,
    /// Link on which the packet came in, 0 for none.
    pub ingress_ifindex: u32,
    /// The link.
    pub ifindex: u32,
    /// Must be 0.
    pub tc_index: u32,
    /// `skb->cb`: [0] is what a link stub puts there.
    pub cb: [u32; 5],
    /// Must be 0.
    pub hash_to_tstamp: [u32; 21],
    /// `skb->tstamp`.
    pub tstamp: u64,
    /// Bytes on the wire, 0 for the packet's own.
    pub wire_len: u32,
    /// Segments of a GSO packet.
    pub gso_segs: u32,
    /// Must be 0.
    pub sk: u64,
    /// Payload of a segment.
    pub gso_size: u32,
    /// Must be 0.
    pub reserved: [u32; 3],
}
const _: () = assert!(size_of::<SkbContext>() == 192);

/// Context of a test run of an XDP program: `struct xdp_md`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpContext {
    /// Must be 0.
    pub data: u32,
    /// Bytes of the packet; must be right.
    pub data_end: u32,
    /// Must be 0.
    pub data_meta: u32,
    /// The link.
    pub ingress_ifindex: u32,
    /// Its queue.
    pub rx_queue_index: u32,
    /// Must be 0.
    pub egress_ifindex: u32,
}

/// A context of a test run.
pub trait Context: Copy + context::Sealed {}
impl Context for SkbContext {}
impl Context for XdpContext {}
mod context {
    pub trait Sealed {}
    impl Sealed for super::SkbContext {}
    impl Sealed for super::XdpContext {}
}

/// What a test run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran<C> {
    /// What the program returned.
    pub verdict: u32,
    /// Mean time of a run.
    pub duration: Duration,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The context afterwards.
    pub context: C,
}

/// Runs a program on a packet `repeat` times (`BPF_PROG_TEST_RUN`). The program runs in the kernel with its real maps.
///
/// # Errors
/// The kernel's. A TC program needs at least 14 bytes.
pub fn test_run<C: Context>(program: &impl AsFd, packet: &[u8], context: C, repeat: u32) -> io::Result<Ran<C>> {
    let size = u32::try_from(size_of::<C>()).map_err(io::Error::other)?;
    let mut after = context;
    let mut out = vec![0; packet.len() + 256];
    let mut attr = zeroed();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = packet.as_ptr().addr() as u64;
    attr.test.data_size_in = u32::try_from(packet.len()).map_err(io::Error::other)?;
    attr.test.data_out = out.as_mut_ptr().addr() as u64;
    attr.test.data_size_out = u32::try_from(out.len()).map_err(io::Error::other)?;
    attr.test.ctx_in = ptr::from_ref(&context).addr() as u64;
    attr.test.ctx_size_in = size;
    attr.test.ctx_out = ptr::from_mut(&mut after).addr() as u64;
    attr.test.ctx_size_out = size;
    attr.test.repeat = repeat;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: integers that the kernel wrote.
    let test = unsafe { attr.test };
    out.truncate(test.data_size_out as usize);
    Ok(Ran { verdict: test.retval, duration: Duration::from_nanos(test.duration.into()), packet: out, context: after })
}

/// Puts `count` copies of a frame into the receive path of a link of this network namespace, in batches of 64, each as the XDP program leaves it
/// and passes it on (`BPF_F_TEST_XDP_LIVE_FRAMES`). No socket sends at such a rate, or so many at once.
///
/// # Errors
/// The kernel's.
pub fn live_frames(program: &impl AsFd, frame: &[u8], ifindex: u32, count: u32) -> io::Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
    let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let context = XdpContext { data_end: len, ingress_ifindex: ifindex, ..XdpContext::default() };
    let mut attr = zeroed();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = frame.as_ptr().addr() as u64;
    attr.test.data_size_in = len;
    attr.test.ctx_in = ptr::from_ref(&context).addr() as u64;
    attr.test.ctx_size_in = u32::try_from(size_of::<XdpContext>()).map_err(io::Error::other)?;
    attr.test.repeat = count;
    attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    attr.test.batch_size = 64;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// Waits until no program runs any more that started before the call: an RCU grace period of the kernel.
///
/// # Errors
/// The kernel's: it has no membarrier(2), or `nohz_full` CPUs, which a global barrier does not reach.
pub fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: c_long = 1;
    // SAFETY: no pointers.
    let result = expedite::waiting(|| unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) });
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
