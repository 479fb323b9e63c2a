//! Functions that other processes can call.
#![allow(unsafe_code)]

use std::ptr::NonNull;

/// A function that can be run in another process: any `fn`, and any closure that captures nothing, of up to eight
/// arguments, which are given as a tuple: `(a,)`, `(a, b)`, …
///
/// No attribute is needed and there is nothing to register: the other process runs the same program, so it has the
/// function already. It needs no more than the function's place in the program, which is the same wherever the program is
/// loaded. What a closure captures could not travel like that. A closure that captures, and a function pointer, whose
/// function is known only when the program runs, are refused by the compiler when the program is built:
///
/// ```compile_fail
/// # fn main() {
/// # procession::init();
/// let factor = 3;
/// // error: a function for another process can't capture anything: pass what it needs as an argument
/// let child = procession::Process::spawn(move |n: u32| n * factor, (14,));
/// # }
/// ```
///
/// Arguments and result are sent: they are [`Message`](crate::Message)s.
///
/// The arguments of a closure need their types written down: `|n: u32| n + 1`; and so does the result of one that never
/// returns: `|| -> () { loop { … } }`.
///
/// (A captured value that takes no memory, like `()`, passes unnoticed and does no harm: the other process makes one for itself.)
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that another process can call with the arguments `{Args}`",
    note = "arguments are given as a tuple, (a,) for a single one; a closure must be `Copy` and capture nothing"
)]
pub trait Function<Args>: Copy + Send + Sync + 'static {
    /// What it returns.
    type Output;

    /// Calls it, in this process.
    fn call(self, args: Args) -> Self::Output;
}

macro_rules! functions {
    ($($arg:ident)*) => {
        impl<F, R, $($arg,)*> Function<($($arg,)*)> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
        {
            type Output = R;

            #[inline]
            fn call(self, args: ($($arg,)*)) -> R {
                #[allow(non_snake_case, reason = "named after their types")]
                let ($($arg,)*) = args;
                self($($arg),*)
            }
        }
    };
}

functions!();
functions!(A);
functions!(A B);
functions!(A B C);
functions!(A B C D);
functions!(A B C D E);
functions!(A B C D E G);
functions!(A B C D E G H);
functions!(A B C D E G H I);

/// The function itself, in the process that is to run it.
///
/// # Safety
///
/// The program has had a value of `F`, in this process or the one that asks for the call.
pub(crate) unsafe fn conjure<F: Copy + 'static>() -> F {
    const {
        assert!(
            size_of::<F>() == 0,
            "a function for another process can't capture anything: pass what it needs as an argument \
             (and name the function itself instead of a function pointer)"
        );
    }
    // SAFETY: it has no bytes that could be wrong, there are values of it, and being `Copy`, there may be any number of them.
    unsafe { NonNull::<F>::dangling().read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(a: u32, b: u32) -> u32 {
        a + b
    }

    fn anew<F: Function<Args>, Args>(_: F, args: Args) -> F::Output {
        // SAFETY: a value was passed.
        unsafe { conjure::<F>() }.call(args)
    }

    #[test]
    fn functions_and_closures_are_made_anew() {
        assert_eq!(anew(add, (1, 2)), 3);
        assert_eq!(anew(|| "none", ()), "none");
        assert_eq!(anew(|text: String| text.len(), (String::from("four"),)), 4);
        assert_eq!(anew(u64::from_str_radix, ("ff", 16)), Ok(255));
    }
}
