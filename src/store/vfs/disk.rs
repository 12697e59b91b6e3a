//! A disk that remembers in which order it was written and synced, for tests of what a loss of power
//! leaves behind: all that was synced, and of the rest whatever chance leaves, in sectors.
//!
//! It lies below the writer's file system, so it sees what the kernel would be asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use rand::RngExt;
use rand::rngs::SmallRng;
use rusqlite::ffi;

use super::{checked, inner, stand_on};

const BELOW: &CStr = c"tribune-test-disk";
const NAME: &CStr = c"tribune-on-test-disk";

/// A disk writes a sector whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What was asked of the disk.
#[derive(Clone, Debug)]
pub enum Action {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { size: usize },
    Sync,
}

/// All that was asked since the recording began, by file.
#[derive(Default, Debug)]
pub struct Recording {
    pub actions: Vec<(PathBuf, Action)>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Begins to record what writers do that this thread opens from now on.
pub fn begin() {
    RECORDING.set(Some(Recording::default()));
}

/// Ends the recording, and returns it.
pub fn end() -> Recording {
    RECORDING.take().unwrap_or_default()
}

/// Returns how much was asked of the disk so far.
pub fn count() -> usize {
    RECORDING.with_borrow(|recording| recording.as_ref().map_or(0, |it| it.actions.len()))
}

pub fn is_recording() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

impl Recording {
    /// Returns what the files hold when the power is lost after so many actions, given what they
    /// held before the first.
    pub fn lose_power(
        &self,
        after: usize,
        before: &BTreeMap<PathBuf, Vec<u8>>,
        rng: &mut SmallRng,
    ) -> BTreeMap<PathBuf, Vec<u8>> {
        let done = &self.actions[..after];
        let syncs = done.iter().enumerate().filter(|(_, (_, it))| matches!(it, Action::Sync));
        let synced: BTreeMap<&PathBuf, usize> = syncs.map(|(nth, (path, _))| (path, nth)).collect();
        let mut files = before.clone();
        for (nth, (path, action)) in done.iter().enumerate() {
            let is_synced = synced.get(path).is_some_and(|last| *last > nth);
            let held = files.entry(path.clone()).or_default();
            match action {
                Action::Write { offset, bytes } => {
                    for (nth, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if is_synced || rng.random_bool(0.5) {
                            put(held, offset + nth * SECTOR_BYTES, sector);
                        }
                    }
                }
                Action::Truncate { size } if is_synced || rng.random_bool(0.5) => {
                    held.resize(*size, 0);
                }
                Action::Truncate { .. } | Action::Sync => {}
            }
        }
        files
    }
}

fn put(held: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    held.resize(held.len().max(end), 0);
    held[offset..end].copy_from_slice(bytes);
}

/// Makes the disk known to SQLite, with the writer's file system on it.
pub fn register() -> rusqlite::Result<&'static CStr> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    let code = *REGISTERED.get_or_init(|| {
        // SAFETY: SQLite's default file system is never unregistered, nor is ours, which looks at no
        // more of the table than its first open does.
        unsafe {
            let base = ffi::sqlite3_vfs_find(ptr::null());
            let code = stand_on(base, BELOW);
            if code != ffi::SQLITE_OK {
                return code;
            }
            let below = ffi::sqlite3_vfs_find(BELOW.as_ptr());
            (*below).xOpen = Some(open);
            stand_on(below, NAME)
        }
    });
    checked(code, NAME)
}

/// A file of the disk: a log or a database.
#[repr(C)]
struct DiskFile {
    methods: *const ffi::sqlite3_io_methods,
    path: *mut PathBuf,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Files are not mapped: what is written through a map is not seen here.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    _system: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: as in the parent's `open`.
    unsafe {
        let base = ffi::sqlite3_vfs_find(ptr::null());
        let Some(open) = (*base).xOpen else { return ffi::SQLITE_CANTOPEN };
        let is_kept = flags & (ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL) != 0;
        if !is_kept || name.is_null() {
            return open(base, name, file, flags, out_flags);
        }
        let ours = file.cast::<DiskFile>();
        let inner = ours.add(1).cast::<ffi::sqlite3_file>();
        (*ours).methods = ptr::null();
        (*inner).pMethods = ptr::null();
        let code = open(base, name, inner, flags, out_flags);
        if code == ffi::SQLITE_OK {
            let path = PathBuf::from(CString::from(CStr::from_ptr(name)).into_string().unwrap());
            (*ours).path = Box::into_raw(Box::new(path));
            (*ours).methods = &raw const METHODS;
        }
        code
    }
}

unsafe fn note(file: *mut ffi::sqlite3_file, action: Action) {
    // SAFETY: `open` put a path there, which only `close` takes away.
    let path = unsafe { (*(*file.cast::<DiskFile>()).path).clone() };
    RECORDING.with_borrow_mut(|recording| {
        recording.iter_mut().for_each(|it| it.actions.push((path.clone(), action.clone())));
    });
}

fn place(number: i64) -> usize {
    usize::try_from(number).unwrap()
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        let code = call!(file, xClose);
        drop(Box::from_raw((*file.cast::<DiskFile>()).path));
        (*file).pMethods = ptr::null();
        code
    }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xRead, to, length, offset) }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        let bytes = slice::from_raw_parts(from.cast::<u8>(), place(i64::from(length))).to_vec();
        note(file, Action::Write { offset: place(offset), bytes });
        call!(file, xWrite, from, length, offset)
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        note(file, Action::Truncate { size: place(size) });
        call!(file, xTruncate, size)
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        note(file, Action::Sync);
        call!(file, xSync, flags)
    }
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xFileSize, size) }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xLock, level) }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xUnlock, level) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, to: *mut c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xCheckReservedLock, to) }
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    what: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xFileControl, what, argument) }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xSectorSize) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xDeviceCharacteristics) }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xShmMap, page, size, extend, to) }
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xShmLock, offset, count, flags) }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe {
        let (inner, methods) = inner(file);
        methods.xShmBarrier.into_iter().for_each(|barrier| barrier(inner));
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file that `open` opened, one call at a time.
    unsafe { call!(file, xShmUnmap, delete) }
}
