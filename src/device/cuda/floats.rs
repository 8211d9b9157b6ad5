//! The memory of rows of floats.

use std::sync::Arc;

use super::driver::{Allocation, Buffer, Driver};
use crate::device::{DeviceError, FloatType, fp8};

/// The memory of [`Floats`](super::Floats) of either type.
#[derive(Debug)]
pub enum FloatMemory {
    /// F32 elements.
    F32(Buffer<f32>),
    /// BF16 elements.
    Bf16(Buffer<u16>),
}

impl FloatMemory {
    /// Allocates zeros.
    pub(super) fn new(driver: &Driver, float_type: FloatType, elements: usize) -> Result<Self, DeviceError> {
        Ok(match float_type {
            FloatType::F32 => Self::F32(driver.buffer(elements)?),
            FloatType::Bf16 => Self::Bf16(driver.buffer(elements)?),
        })
    }

    /// The F32 elements.
    ///
    /// # Panics
    /// If the elements are BF16, which few operations take.
    pub(super) fn f32(&self) -> &Buffer<f32> {
        match self {
            Self::F32(buffer) => buffer,
            Self::Bf16(_) => panic!("expected F32 floats, got BF16"),
        }
    }

    /// The address of the first element, for a kernel's parameters.
    pub(super) fn address(&self) -> u64 {
        self.at(0)
    }

    /// The address of an element.
    pub(super) fn at(&self, index: usize) -> u64 {
        match self {
            Self::F32(buffer) => buffer.at(index),
            Self::Bf16(buffer) => buffer.at(index),
        }
    }

    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(buffer) => buffer.len(),
            Self::Bf16(buffer) => buffer.len(),
        }
    }

    /// The memory, for other ranks that access it.
    pub(super) fn memory(&self) -> Arc<Allocation> {
        match self {
            Self::F32(buffer) => buffer.memory(),
            Self::Bf16(buffer) => buffer.memory(),
        }
    }

    /// Overwrites the first elements, rounded to their type.
    pub(super) fn write(&self, from: &[f32]) -> Result<(), DeviceError> {
        match self {
            Self::F32(buffer) => buffer.write(0, from),
            Self::Bf16(buffer) => {
                let rounded: Vec<u16> = from.iter().map(|x| fp8::bf16_bits(*x)).collect();
                buffer.write(0, &rounded)
            }
        }
    }

    /// Waits for all enqueued work and copies the first `len` elements.
    pub(super) fn read(&self, len: usize) -> Result<Vec<f32>, DeviceError> {
        match self {
            Self::F32(buffer) => buffer.read(len),
            Self::Bf16(buffer) => Ok(buffer.read(len)?.into_iter().map(fp8::bf16_value).collect()),
        }
    }
}
