//! Naming a function so that another process finds it, if it runs the same build.
//!
//! A function is named by its distance from the start of the object file it was linked into: the program, or the
//! library that this crate was linked into. Where the file is loaded differs from process to process, distances in it don't. They
//! mean nothing in another build, so processes compare [`build_id`] before they believe each other's.
//!
//! Only functions of the very object file that holds this crate can be named. With this crate in a program that is all
//! there is, since Rust links statically.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, OsStr, c_int, c_void},
    io,
    ops::Range,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A function of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Code(u64);

/// The function belongs to another object file than this crate, or is none.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the function is not in the program or library that procession was linked into")]
pub struct ForeignCode;

impl Code {
    /// The name of the function at an address of this process.
    pub(crate) fn of(function: *const ()) -> Result<Self, ForeignCode> {
        let object = object();
        let address = function.expose_provenance();
        if !object.executes(address) {
            return Err(ForeignCode);
        }
        Ok(Self((address - object.base) as u64))
    }

    /// Where it is in this process: some place in the code of this object file. That it is where the function begins is
    /// what equal build ids stand for.
    pub(crate) fn address(self) -> Result<*const (), ForeignCode> {
        let object = object();
        let offset = usize::try_from(self.0).map_err(|_| ForeignCode)?;
        let address = object.base.checked_add(offset).filter(|&address| object.executes(address)).ok_or(ForeignCode)?;
        Ok(std::ptr::with_exposed_provenance(address))
    }
}

/// What tells this build from others: the linker's build id of the object file, or where there is none, which file it
/// is, how long, and when it was changed.
pub(crate) fn build_id() -> &'static [u8] {
    &object().build_id
}

/// The object file that this crate was linked into.
#[derive(Debug)]
struct Object {
    base: usize,
    code: Vec<Range<usize>>,
    build_id: Vec<u8>,
}

impl Object {
    fn executes(&self, address: usize) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }
}

fn object() -> &'static Object {
    static OBJECT: OnceLock<Object> = OnceLock::new();
    // Not `get_or_init`: a process forked while another thread is at it would wait for that thread for ever.
    OBJECT.get().unwrap_or_else(|| {
        let _ = OBJECT.set(find());
        OBJECT.get().expect("set by this thread or another one")
    })
}

fn find() -> Object {
    let mut found: Option<Object> = None;
    // SAFETY: `visit` gets the pointer to `found`, which outlives the call, and is called by this thread only.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
    // No loader has told of it, as in a static program of some kinds: nothing is known to be code.
    found.unwrap_or(Object { base: 0, code: Vec::new(), build_id: Vec::new() })
}

/// Called for each object file that is loaded; non-zero ends the walk.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader passes a description that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader's table of segments: so many entries, there for as long as the file is loaded.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let range = |header: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        start..start.wrapping_add(header.p_memsz as usize)
    };
    let code: Vec<_> = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
        .map(range)
        .collect();
    let here = (find as fn() -> Object as *const ()).addr();
    if !code.iter().any(|range| range.contains(&here)) {
        return 0;
    }
    let noted = headers.iter().filter(|header| header.p_type == libc::PT_NOTE).find_map(|header| {
        let range = range(header);
        // SAFETY: a segment of notes is mapped for as long as the file is loaded, and read-only.
        let notes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(range.start), range.len()) };
        build_id_in(notes, header.p_align as usize)
    });
    let build_id = noted.or_else(|| {
        // SAFETY: the loader's name of the file, a string that lives as long as the description.
        let name = (!info.dlpi_name.is_null()).then(|| unsafe { CStr::from_ptr(info.dlpi_name) });
        file_identity(name.unwrap_or_default()).ok()
    });
    // SAFETY: `find` passed a pointer to its variable.
    unsafe { *found.cast() = Some(Object { base, code, build_id: build_id.unwrap_or_default() }) };
    1
}

/// The GNU build id among the notes of an ELF file: see elf(5), "Notes".
fn build_id_in(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let align = if align == 8 { 8 } else { 4 };
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (name_length, length, kind) = (word(0) as usize, word(4) as usize, word(8));
        let name = rest.get(..name_length)?;
        // Offsets are aligned as counted from the start of the note.
        let start = (12 + name_length).next_multiple_of(align) - 12;
        let content = rest.get(start..start.checked_add(length)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(content.to_vec());
        }
        notes = notes.get((12 + start + length).next_multiple_of(align)..)?;
    }
}

fn file_identity(name: &CStr) -> io::Result<Vec<u8>> {
    let path =
        if name.is_empty() { Path::new("/proc/self/exe") } else { Path::new(OsStr::from_bytes(name.to_bytes())) };
    let file = path.metadata()?;
    let facts = [file.dev(), file.ino(), file.size(), file.mtime().cast_unsigned(), file.mtime_nsec().cast_unsigned()];
    Ok(facts.iter().flat_map(|fact| fact.to_ne_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(n: u32) -> u32 {
        n * 2
    }

    #[test]
    fn a_function_is_found_again() {
        let code = Code::of(double as fn(u32) -> u32 as *const ()).unwrap();
        let address = code.address().unwrap();
        // SAFETY: the address of a function of this type, as it was taken above.
        let function: fn(u32) -> u32 = unsafe { std::mem::transmute(address) };
        assert_eq!(function(21), 42);
    }

    #[test]
    fn what_is_not_code_of_this_object_is_refused() {
        assert_eq!(Code::of(std::ptr::null()), Err(ForeignCode));
        assert_eq!(Code::of(libc::abs as *const ()), Err(ForeignCode));
        let local = 0_u8;
        assert_eq!(Code::of((&raw const local).cast()), Err(ForeignCode));
        assert_eq!(Code(u64::MAX).address(), Err(ForeignCode));
        assert_eq!(Code(0).address(), Err(ForeignCode));
    }

    #[test]
    fn a_build_has_an_id() {
        assert!(build_id().len() >= 8);
        assert_eq!(build_id(), build_id());
    }

    #[test]
    fn a_build_id_is_found_among_notes_and_garbage_is_none() {
        let note = |name: &[u8], kind: u32, content: &[u8]| {
            let mut bytes = Vec::new();
            bytes.extend((name.len() as u32).to_ne_bytes());
            bytes.extend((content.len() as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            for part in [name, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let notes =
            [note(b"stapsdt\0", 3, b"other"), note(b"GNU\0", 1, b"abi"), note(b"GNU\0", 3, b"identity")].concat();
        assert_eq!(build_id_in(&notes, 4).unwrap(), b"identity");
        for end in 0..notes.len() {
            assert_eq!(build_id_in(&notes[..end], 4), None);
        }
        assert_eq!(build_id_in(&[0xff; 40], 4), None);
    }
}
