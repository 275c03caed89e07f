//! Classes on a command line: any text that parses, and completion of those without settings.

use std::ffi::OsStr;
use std::str::FromStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};
use eddy_node::ceremony::profile::profiles;

/// Parses what names a class. Use it with `hide_possible_values`: settings may follow a name.
#[derive(Clone)]
pub struct ClassParser<T>(fn(&str) -> Result<T, String>);

impl<T: FromStr<Err = String>> ClassParser<T> {
    pub fn new() -> ClassParser<T> {
        ClassParser(T::from_str)
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for ClassParser<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let parse = self.0;
        StringValueParser::new().try_map(move |text| parse(&text)).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(profiles().chain(["S", "M", "L"]).map(PossibleValue::new)))
    }
}
