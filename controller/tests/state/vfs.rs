//! Listens to what SQLite writes: its file system layer, with each call written down after it was done.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    path::Path,
    ptr, slice,
    sync::{Mutex, Once, OnceLock},
};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

/// A call that changed a file, by the file's name.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Write {
        file: String,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: String,
        len: usize,
    },
    Sync {
        file: String,
    },
    Delete {
        file: String,
    },
    /// Not of SQLite: a transaction has returned.
    Done,
}

thread_local! {
    static HEARD: RefCell<Option<Vec<Call>>> = const { RefCell::new(None) };
}

/// Calls that `act` makes on this thread, with those that it notes itself.
pub(crate) fn listen(act: impl FnOnce()) -> Vec<Call> {
    install();
    HEARD.set(Some(Vec::new()));
    act();
    HEARD.take().unwrap()
}

pub(crate) fn note(call: Call) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(heard) = heard {
            heard.push(call);
        }
    });
}

/// An open file: its name, and how it was to be used.
struct Open {
    name: String,
    real: &'static sqlite3_io_methods,
}

/// By the address of SQLite's structure.
static OPEN: Mutex<Option<HashMap<usize, Open>>> = Mutex::new(None);
/// Address of the layer that does the work.
static REAL: OnceLock<usize> = OnceLock::new();

fn real() -> *mut sqlite3_vfs {
    ptr::with_exposed_provenance_mut(REAL.get().copied().unwrap())
}

/// Makes the listener the default of this process. Threads that do not listen notice nothing.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: no arguments; SQLite sets itself up. The default layer is static.
        let default = unsafe {
            ffi::sqlite3_initialize();
            ffi::sqlite3_vfs_find(ptr::null())
        };
        REAL.set(default.expose_provenance()).unwrap();
        // SAFETY: `default` points to the layer, a plain structure. Its functions take what they need from `pAppData`, which the copy shares.
        let copy = sqlite3_vfs {
            zName: c"listening".as_ptr(),
            pNext: ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..unsafe { *default }
        };
        // SAFETY: the structure is leaked and its name static, so both live as long as SQLite may use them.
        assert_eq!(unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(copy)), 1) }, ffi::SQLITE_OK);
    });
}

fn base_name(path: *const c_char) -> String {
    // SAFETY: SQLite passes paths that end with zero.
    let path = unsafe { CStr::from_ptr(path) }.to_str().unwrap();
    Path::new(path).file_name().unwrap().to_str().unwrap().to_owned()
}

fn with_open<T>(file: *mut sqlite3_file, act: impl FnOnce(&Open) -> T) -> T {
    act(&OPEN.lock().unwrap().as_ref().unwrap()[&file.addr()])
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's own arguments, given on to the layer that they are meant for.
    let code = unsafe { (*real()).xOpen.unwrap()(real(), path, file, flags, out) };
    // SAFETY: `xOpen` has set the methods, or null where nothing has to be closed.
    let methods = unsafe { (*file).pMethods };
    if methods.is_null() || path.is_null() {
        return code;
    }
    // SAFETY: the layer's tables of methods are static.
    let real: &'static sqlite3_io_methods = unsafe { &*methods };
    OPEN.lock().unwrap().get_or_insert_default().insert(file.addr(), Open { name: base_name(path), real });
    let wrapped = sqlite3_io_methods {
        xClose: Some(close),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        ..*real
    };
    // SAFETY: the structure is SQLite's to write until the file is closed; the table is leaked.
    unsafe { (*file).pMethods = Box::into_raw(Box::new(wrapped)) };
    code
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let Open { real, .. } = OPEN.lock().unwrap().as_mut().unwrap().remove(&file.addr()).unwrap();
    // SAFETY: SQLite's own argument.
    unsafe { real.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, len: c_int, offset: sqlite3_int64) -> c_int {
    let (name, real) = with_open(file, |open| (open.name.clone(), open.real));
    // SAFETY: SQLite's own arguments.
    let code = unsafe { real.xWrite.unwrap()(file, bytes, len, offset) };
    assert_eq!(code, ffi::SQLITE_OK, "writing {name}");
    // SAFETY: SQLite gives so many bytes.
    let bytes = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len.try_into().unwrap()) }.to_vec();
    note(Call::Write { file: name, offset: offset.try_into().unwrap(), bytes });
    code
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: sqlite3_int64) -> c_int {
    let (name, real) = with_open(file, |open| (open.name.clone(), open.real));
    // SAFETY: SQLite's own arguments.
    let code = unsafe { real.xTruncate.unwrap()(file, len) };
    note(Call::Truncate { file: name, len: len.try_into().unwrap() });
    code
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    let (name, real) = with_open(file, |open| (open.name.clone(), open.real));
    // SAFETY: SQLite's own arguments.
    let code = unsafe { real.xSync.unwrap()(file, flags) };
    note(Call::Sync { file: name });
    code
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, path: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, given on to the layer that they are meant for.
    let code = unsafe { (*real()).xDelete.unwrap()(real(), path, sync) };
    if code == ffi::SQLITE_OK {
        note(Call::Delete { file: base_name(path) });
    }
    code
}
