//! How what crosses the connection is written: numbers as LEB128, everything else by its length.
//!
//! Both ends are Trunkline and agree on a version in the handshake, so that nothing here names its
//! fields. What is read is checked: a length that is not there or a tag that nobody knows is an
//! error of the other end, never a panic and never an allocation of the size that it claims.

mod types;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use smol_str::SmolStr;
use trunkline_core::Timestamp;

/// What cannot be read, in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Something that crosses the connection.
pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut BytesMut);
    fn get(from: &mut &[u8]) -> Result<Self, Malformed>;
}

/// Reads one value that fills the input.
pub(crate) fn read<T: Wire>(mut from: &[u8]) -> Result<T, Malformed> {
    let value = T::get(&mut from)?;
    match from {
        [] => Ok(value),
        _ => Err(Malformed("there is more than there should be")),
    }
}

/// Gives the first `count` bytes.
pub(crate) fn take<'a>(from: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = from
        .split_at_checked(count)
        .ok_or(Malformed("it ends too early"))?;
    *from = rest;
    Ok(taken)
}

impl Wire for u64 {
    fn put(&self, out: &mut BytesMut) {
        let mut rest = *self;
        while rest >= 0x80 {
            out.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.put_u8(rest as u8);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = u8::get(from)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number has more than 64 bits"))
    }
}

impl Wire for u8 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(*self);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        take(from, 1).map(|byte| byte[0])
    }
}

impl Wire for bool {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("neither yes nor no")),
        }
    }
}

impl Wire for u32 {
    fn put(&self, out: &mut BytesMut) {
        u64::from(*self).put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Self::try_from(u64::get(from)?).map_err(|_| Malformed("a number has more than 32 bits"))
    }
}

impl Wire for usize {
    /// What has no limit here has none there.
    fn put(&self, out: &mut BytesMut) {
        (*self as u64).put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self::try_from(u64::get(from)?).unwrap_or(Self::MAX))
    }
}

impl Wire for Timestamp {
    fn put(&self, out: &mut BytesMut) {
        out.put_i64_le(self.as_nanos());
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let mut nanos = [0; 8];
        nanos.copy_from_slice(take(from, 8)?);
        Ok(Self::from_nanos(i64::from_le_bytes(nanos)))
    }
}

impl Wire for Duration {
    fn put(&self, out: &mut BytesMut) {
        self.as_secs().put(out);
        self.subsec_nanos().put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let (seconds, nanos) = (u64::get(from)?, u32::get(from)?);
        match nanos {
            0..1_000_000_000 => Ok(Self::new(seconds, nanos)),
            _ => Err(Malformed("a second has too many nanoseconds")),
        }
    }
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    bytes.len().put(out);
    out.put_slice(bytes);
}

fn get_bytes<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::get(from)?;
    take(from, length)
}

/// Text where it stands, to be checked by whoever makes something of it.
fn get_str<'a>(from: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    str::from_utf8(get_bytes(from)?).map_err(|_| Malformed("text is not UTF-8"))
}

impl Wire for Bytes {
    fn put(&self, out: &mut BytesMut) {
        put_bytes(self, out);
    }

    /// A copy: sharing the packet's memory would keep all of it for as long as one event is kept.
    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        get_bytes(from).map(Self::copy_from_slice)
    }
}

impl Wire for String {
    fn put(&self, out: &mut BytesMut) {
        put_bytes(self.as_bytes(), out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        get_str(from).map(Self::from)
    }
}

impl Wire for SmolStr {
    fn put(&self, out: &mut BytesMut) {
        put_bytes(self.as_bytes(), out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        get_str(from).map(Self::from)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut BytesMut) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        bool::get(from)?.then(|| T::get(from)).transpose()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok((A::get(from)?, B::get(from)?))
    }
}

fn put_all<'a, T: Wire + 'a>(values: impl ExactSizeIterator<Item = &'a T>, out: &mut BytesMut) {
    values.len().put(out);
    for value in values {
        value.put(out);
    }
}

fn get_all<T: Wire>(from: &mut &[u8], mut keep: impl FnMut(T)) -> Result<(), Malformed> {
    // Every value has a byte at least, so a count that lies ends at the end of the input.
    for _ in 0..usize::get(from)? {
        keep(T::get(from)?);
    }
    Ok(())
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut BytesMut) {
        put_all(self.iter(), out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let mut all = Self::new();
        get_all(from, |value| all.push(value))?;
        Ok(all)
    }
}

impl<T: Wire> Wire for SmallVec<[T; 1]> {
    fn put(&self, out: &mut BytesMut) {
        put_all(self.iter(), out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let mut all = Self::new();
        get_all(from, |value| all.push(value))?;
        Ok(all)
    }
}

impl Wire for () {
    fn put(&self, out: &mut BytesMut) {
        // A byte all the same, so that a list of them has as many bytes as it claims.
        out.put_u8(0);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        take(from, 1).map(|_| ())
    }
}

/// A struct is its fields, in this order.
macro_rules! wire_struct {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Wire for $type {
            fn put(&self, out: &mut bytes::BytesMut) {
                $($crate::codec::Wire::put(&self.$field, out);)*
            }

            fn get(from: &mut &[u8]) -> Result<Self, $crate::codec::Malformed> {
                Ok(Self { $($field: $crate::codec::Wire::get(from)?),* })
            }
        }
    };
}

/// An enum is a tag and the fields of its variant. What a later version of the core may add is
/// written as a tag that nobody reads.
macro_rules! wire_enum {
    ($type:ty { $($tag:literal => $variant:ident $(($($item:ident),*))? $({ $($field:ident),* })?),* $(,)? }) => {
        impl $crate::codec::Wire for $type {
            fn put(&self, out: &mut bytes::BytesMut) {
                #[allow(unreachable_patterns, reason = "not every enum may grow")]
                match self {
                    $(Self::$variant $(($($item),*))? $({ $($field),* })? => {
                        $crate::codec::Wire::put(&($tag as u8), out);
                        $($($crate::codec::Wire::put($item, out);)*)?
                        $($($crate::codec::Wire::put($field, out);)*)?
                    })*
                    _ => $crate::codec::Wire::put(&u8::MAX, out),
                }
            }

            fn get(from: &mut &[u8]) -> Result<Self, $crate::codec::Malformed> {
                match <u8 as $crate::codec::Wire>::get(from)? {
                    $($tag => Ok(Self::$variant
                        $(($({ let $item = $crate::codec::Wire::get(from)?; $item }),*))?
                        $({ $($field: $crate::codec::Wire::get(from)?),* })?
                    ),)*
                    _ => Err($crate::codec::Malformed(concat!("unknown kind of ", stringify!($type)))),
                }
            }
        }
    };
}

pub(crate) use {wire_enum, wire_struct};
