//! What can lie in shared memory.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Plain data: types of which any bytes are a value, without padding and without pointers, so that processes can have it in
/// common. Numbers, arrays of them, and structures of such with derives of [`zerocopy`](crate::zerocopy).
///
/// It is implemented by itself. As any bytes are a value, there is nothing that another process could leave there, whenever
/// it dies, that can't be read.
///
/// ```
/// use procession::{Lock, zerocopy};
///
/// #[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
/// #[zerocopy(crate = "procession::zerocopy")]
/// #[repr(C)]
/// struct Account {
///     number: u64,
///     balance: f64,
/// }
///
/// let account = Lock::new(Account { number: 7, balance: 10.0 })?;
/// account.acquire().unwrap().balance -= 2.5;
/// assert_eq!(account.peek().balance, 7.5);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// What has values that not any bytes are is refused: `bool`, `char`, references, enums. A `u8` stands for a `bool`.
///
/// ```compile_fail
/// let flag = procession::Lock::new(true);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't lie in shared memory",
    label = "needs `FromBytes`, `IntoBytes` and `Immutable` of zerocopy: plain data without padding, pointers, `bool`, `char` or enums"
)]
pub trait PlainData: FromBytes + IntoBytes + Immutable + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + 'static> PlainData for T {}
