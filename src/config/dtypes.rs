//! Names of the number formats on the command line, in reports and in recordings.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::device::KvDtype;
use crate::model::{HeadDtype, Precision};

impl ValueEnum for Precision {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Fp8, Self::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Fp8 => PossibleValue::new("fp8").help("E4M3 weights and inputs"),
            Self::None => PossibleValue::new("none").help("Weights as stored, BF16 inputs"),
        })
    }
}

impl ValueEnum for HeadDtype {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Fp8, Self::Bf16]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Fp8 => PossibleValue::new("fp8").help("E4M3 with a scale per row"),
            Self::Bf16 => PossibleValue::new("bf16").alias("bfloat16").help("BF16"),
        })
    }
}

impl ValueEnum for KvDtype {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Fp8, Self::Bf16]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Fp8 => PossibleValue::new("fp8").alias("fp8_e4m3").help("E4M3"),
            Self::Bf16 => PossibleValue::new("bf16").alias("bfloat16").help("BF16"),
        })
    }
}

/// The name of a value on the command line, for example `fp8`.
pub(crate) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
