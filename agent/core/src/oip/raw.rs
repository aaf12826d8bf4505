//! Elements as raw buffers: the binary tensor extension's bytes over REST, and
//! `raw_input_contents` over gRPC.
//!
//! Numbers lie one after the other, little-endian and row-major; a BOOL is a byte of
//! 0 or 1; a BYTES element is its length in four bytes, then itself. A buffer comes
//! from anybody: its size is held against its type and shape before anything is
//! reserved, and what is reserved follows the bytes that are there, never a length
//! that was only claimed.

use rollcall_shared::manifest::DataType;

use crate::tensor::{TensorData, element_count, needed};

/// Bytes of the length before each BYTES element.
const LENGTH_BYTES: usize = 4;

/// A buffer that is not what its tensor says, or elements that no buffer can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum RawError {
    #[error("tensor {name:?} is FP16, which is not taken here: send FP32")]
    Half { name: String },
    #[error(
        "tensor {name:?} came as {got} bytes: {datatype} {shape:?} needs {}",
        needed(*expected)
    )]
    Size {
        name: String,
        datatype: DataType,
        shape: Vec<usize>,
        /// `None`: more than there can be.
        expected: Option<usize>,
        got: usize,
    },
    #[error("element {position} of tensor {name:?} is the byte {byte}: a BOOL is 0 or 1")]
    NotBool {
        name: String,
        position: usize,
        byte: u8,
    },
    #[error(
        "tensor {name:?} ends inside its element {position}: each BYTES element is its length \
         as 4 bytes, little-endian, and then so many bytes"
    )]
    CutOff { name: String, position: usize },
    #[error(
        "tensor {name:?} does not have the elements that its shape {shape:?} needs, which are {}",
        needed(*expected)
    )]
    Elements {
        name: String,
        shape: Vec<usize>,
        /// `None`: more than there can be.
        expected: Option<usize>,
    },
    #[error("element {position} has {bytes} bytes, more than a buffer can say")]
    TooLong { position: usize, bytes: usize },
}

/// Turns the buffer of tensor `name` into elements.
///
/// # Errors
/// When `bytes` are not exactly the elements that `datatype` and `shape` say.
pub fn read(
    name: &str,
    datatype: DataType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<TensorData, RawError> {
    let buffer = Buffer {
        name,
        datatype,
        shape,
        count: element_count(shape),
        bytes,
    };
    Ok(match datatype {
        DataType::Bool => TensorData::Bool(buffer.truths()?),
        DataType::Uint8 => TensorData::Uint8(buffer.numbers(u8::from_le_bytes)?),
        DataType::Uint16 => TensorData::Uint16(buffer.numbers(u16::from_le_bytes)?),
        DataType::Uint32 => TensorData::Uint32(buffer.numbers(u32::from_le_bytes)?),
        DataType::Uint64 => TensorData::Uint64(buffer.numbers(u64::from_le_bytes)?),
        DataType::Int8 => TensorData::Int8(buffer.numbers(i8::from_le_bytes)?),
        DataType::Int16 => TensorData::Int16(buffer.numbers(i16::from_le_bytes)?),
        DataType::Int32 => TensorData::Int32(buffer.numbers(i32::from_le_bytes)?),
        DataType::Int64 => TensorData::Int64(buffer.numbers(i64::from_le_bytes)?),
        DataType::Fp32 => TensorData::Fp32(buffer.numbers(f32::from_le_bytes)?),
        DataType::Fp64 => TensorData::Fp64(buffer.numbers(f64::from_le_bytes)?),
        DataType::Bytes => TensorData::Bytes(buffer.texts()?),
        DataType::Fp16 => {
            let name = name.to_owned();
            return Err(RawError::Half { name });
        }
    })
}

struct Buffer<'a> {
    name: &'a str,
    datatype: DataType,
    shape: &'a [usize],
    count: Option<usize>,
    bytes: &'a [u8],
}

impl Buffer<'_> {
    /// Elements of `N` bytes each.
    fn numbers<const N: usize, T>(&self, of: impl Fn([u8; N]) -> T) -> Result<Vec<T>, RawError> {
        let expected = self.count.and_then(|count| count.checked_mul(N));
        if expected != Some(self.bytes.len()) {
            return Err(RawError::Size {
                name: self.name.to_owned(),
                datatype: self.datatype,
                shape: self.shape.to_vec(),
                expected,
                got: self.bytes.len(),
            });
        }
        let (chunks, _) = self.bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| of(*chunk)).collect())
    }

    fn truths(&self) -> Result<Vec<bool>, RawError> {
        if let Some(position) = self.bytes.iter().position(|byte| *byte > 1) {
            return Err(RawError::NotBool {
                name: self.name.to_owned(),
                position,
                byte: self.bytes[position],
            });
        }
        self.numbers(|[byte]| byte == 1)
    }

    fn texts(&self) -> Result<Vec<Vec<u8>>, RawError> {
        let wrong_count = || RawError::Elements {
            name: self.name.to_owned(),
            shape: self.shape.to_vec(),
            expected: self.count,
        };
        // Each takes its length at least, so a shape that says more reserves nothing.
        let most = self.bytes.len() / LENGTH_BYTES;
        let expected = self.count.filter(|count| *count <= most);
        let expected = expected.ok_or_else(wrong_count)?;
        let mut texts = Vec::with_capacity(expected);
        let mut rest = self.bytes;
        while texts.len() < expected && !rest.is_empty() {
            let (text, after) = split_text(rest).ok_or_else(|| RawError::CutOff {
                name: self.name.to_owned(),
                position: texts.len(),
            })?;
            texts.push(text.to_vec());
            rest = after;
        }
        if texts.len() == expected && rest.is_empty() {
            Ok(texts)
        } else {
            Err(wrong_count())
        }
    }
}

/// The first element, and what comes after it. `None`: it is not all there.
fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

/// How many bytes [`write()`] adds.
#[must_use]
pub fn byte_len(data: &TensorData) -> usize {
    match data {
        TensorData::Bool(v) => v.len(),
        TensorData::Uint8(v) => size_of_val(v.as_slice()),
        TensorData::Uint16(v) => size_of_val(v.as_slice()),
        TensorData::Uint32(v) => size_of_val(v.as_slice()),
        TensorData::Uint64(v) => size_of_val(v.as_slice()),
        TensorData::Int8(v) => size_of_val(v.as_slice()),
        TensorData::Int16(v) => size_of_val(v.as_slice()),
        TensorData::Int32(v) => size_of_val(v.as_slice()),
        TensorData::Int64(v) => size_of_val(v.as_slice()),
        TensorData::Fp32(v) => size_of_val(v.as_slice()),
        TensorData::Fp64(v) => size_of_val(v.as_slice()),
        TensorData::Bytes(v) => v.iter().map(|text| LENGTH_BYTES + text.len()).sum(),
    }
}

/// Adds the elements to `out`.
///
/// # Errors
/// When a BYTES element has 4 GiB or more; `out` then holds a part.
pub fn write(data: &TensorData, out: &mut Vec<u8>) -> Result<(), RawError> {
    match data {
        TensorData::Bool(v) => out.extend(v.iter().map(|truth| u8::from(*truth))),
        TensorData::Uint8(v) => out.extend_from_slice(v),
        TensorData::Uint16(v) => write_numbers(v, out, u16::to_le_bytes),
        TensorData::Uint32(v) => write_numbers(v, out, u32::to_le_bytes),
        TensorData::Uint64(v) => write_numbers(v, out, u64::to_le_bytes),
        TensorData::Int8(v) => write_numbers(v, out, i8::to_le_bytes),
        TensorData::Int16(v) => write_numbers(v, out, i16::to_le_bytes),
        TensorData::Int32(v) => write_numbers(v, out, i32::to_le_bytes),
        TensorData::Int64(v) => write_numbers(v, out, i64::to_le_bytes),
        TensorData::Fp32(v) => write_numbers(v, out, f32::to_le_bytes),
        TensorData::Fp64(v) => write_numbers(v, out, f64::to_le_bytes),
        TensorData::Bytes(v) => {
            out.reserve(byte_len(data));
            for (position, text) in v.iter().enumerate() {
                let length = u32::try_from(text.len()).map_err(|_| RawError::TooLong {
                    position,
                    bytes: text.len(),
                })?;
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(text);
            }
        }
    }
    Ok(())
}

fn write_numbers<const N: usize, T: Copy>(
    numbers: &[T],
    out: &mut Vec<u8>,
    bytes: impl Fn(T) -> [u8; N],
) {
    let from = out.len();
    out.resize(from + numbers.len() * N, 0);
    let (slots, _) = out[from..].as_chunks_mut::<N>();
    for (slot, number) in slots.iter_mut().zip(numbers) {
        *slot = bytes(*number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roundtrip(data: &TensorData) -> Vec<u8> {
        let mut bytes = vec![9];
        write(data, &mut bytes).unwrap();
        let bytes = bytes.split_off(1);
        assert_eq!(bytes.len(), byte_len(data));
        let read = read("x", data.datatype(), &[1, data.len()], &bytes);
        assert_eq!(read.as_ref(), Ok(data));
        bytes
    }

    fn refusal(datatype: DataType, shape: &[usize], bytes: &[u8]) -> String {
        read("x", datatype, shape, bytes).unwrap_err().to_string()
    }

    #[test]
    fn every_type_writes_and_reads_back() {
        for data in [
            TensorData::Bool(vec![true, false, true]),
            TensorData::Uint8(vec![0, 255]),
            TensorData::Uint16(vec![0, 1, u16::MAX]),
            TensorData::Uint32(vec![0, 1, u32::MAX]),
            TensorData::Uint64(vec![0, 1, u64::MAX]),
            TensorData::Int8(vec![i8::MIN, -1, i8::MAX]),
            TensorData::Int16(vec![i16::MIN, -1, i16::MAX]),
            TensorData::Int32(vec![i32::MIN, -1, i32::MAX]),
            TensorData::Int64(vec![i64::MIN, -1, i64::MAX]),
            TensorData::Fp32(vec![0.1, -0.0, f32::MAX, f32::MIN_POSITIVE]),
            TensorData::Fp64(vec![0.1, -0.0, f64::MAX, f64::MIN_POSITIVE]),
            TensorData::Bytes(vec![vec![], b"a".to_vec(), vec![0, 255, 254]]),
            TensorData::Fp32(vec![]),
            TensorData::Bytes(vec![]),
        ] {
            roundtrip(&data);
        }
    }

    #[test]
    fn numbers_are_little_endian_and_texts_have_their_length_before_them() {
        assert_eq!(
            roundtrip(&TensorData::Uint16(vec![1, 0x0203])),
            [1, 0, 3, 2]
        );
        assert_eq!(roundtrip(&TensorData::Fp32(vec![1.0])), [0, 0, 128, 63]);
        let texts = TensorData::Bytes(vec![b"hi".to_vec(), vec![]]);
        assert_eq!(roundtrip(&texts), *b"\x02\0\0\0hi\0\0\0\0");
    }

    #[test]
    fn a_buffer_of_another_size_says_what_the_tensor_needs() {
        assert_eq!(
            refusal(DataType::Fp32, &[1, 4], &[0; 15]),
            "tensor \"x\" came as 15 bytes: FP32 [1, 4] needs 16"
        );
        for (datatype, needs) in [
            (DataType::Bool, 4),
            (DataType::Int16, 8),
            (DataType::Uint64, 32),
        ] {
            let refusal = refusal(datatype, &[2, 2], &[0; 3]);
            assert!(refusal.ends_with(&format!("needs {needs}")), "{refusal}");
        }
        assert!(refusal(DataType::Fp32, &[], &[]).ends_with("needs 4"));
        assert!(refusal(DataType::Fp32, &[0, 4], &[1]).ends_with("needs 0"));
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let most = usize::MAX;
        for shape in [&[most, 2][..], &[most / 4 + 1], &[most, most, most]] {
            for datatype in [DataType::Fp32, DataType::Bytes] {
                let refusal = refusal(datatype, shape, &[0; 8]);
                assert!(refusal.contains("needs"), "{refusal}");
            }
        }
        assert!(refusal(DataType::Fp32, &[most, 2], &[]).ends_with("more than there can be"));
    }

    #[test]
    fn texts_are_as_many_and_as_long_as_they_say() {
        let texts = |shape, bytes| refusal(DataType::Bytes, shape, bytes);
        // A length that claims 4 GiB of a buffer of 6 bytes.
        assert!(texts(&[1], b"\xff\xff\xff\xffab").contains("ends inside its element 0"));
        assert!(texts(&[2], b"\x01\0\0\0a\x01\0\0\0").contains("ends inside its element 1"));
        assert!(texts(&[2], b"\x04\0\0\0abcd\x01\0").contains("ends inside its element 1"));
        for shape in [&[1][..], &[3], &[usize::MAX]] {
            let refusal = texts(shape, b"\0\0\0\0\x04\0\0\0abcd");
            assert!(refusal.contains("which are"), "{refusal}");
        }
        assert!(texts(&[1], b"").contains("which are 1"));
        assert!(texts(&[0], b"a").contains("which are 0"));
    }

    #[test]
    fn a_truth_is_a_byte_of_0_or_1_and_half_floats_are_not_taken() {
        assert!(refusal(DataType::Bool, &[3], &[0, 1, 2]).starts_with("element 2 of tensor"));
        assert!(refusal(DataType::Fp16, &[1], &[0, 0]).contains("send FP32"));
    }
}
