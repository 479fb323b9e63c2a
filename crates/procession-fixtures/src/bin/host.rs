//! A program that loads a library, and knows nothing of processes. Its argument is the library's path.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    mem::transmute,
    os::unix::ffi::OsStringExt,
};

fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is loaded, and the name is a string that ends with a null byte.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!symbol.is_null(), "the library lacks {name:?}");
    symbol
}

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a library");
    let path = CString::new(path.into_vec()).expect("arguments hold no null bytes");
    // SAFETY: what it runs when it is loaded is harmless.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "{path:?} can't be loaded");
    // SAFETY: the function is of this type.
    let init: unsafe extern "C" fn(*const c_char) = unsafe { transmute(symbol(library, c"fixtures_init")) };
    // SAFETY: the path ends with a null byte.
    unsafe { init(path.as_ptr()) };
    // SAFETY: the function is of this type.
    let double: extern "C" fn(u64, bool) -> u64 = unsafe { transmute(symbol(library, c"fixtures_double")) };
    println!("{} {}", double(21, false), double(50, true));
}
