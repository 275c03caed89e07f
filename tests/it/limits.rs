//! docs/LIMITS.md against the code: a row's value is that of the constants it names.
//!
//! A constant is written as `FILE` `EXPRESSION`. A name alone is a constant of that file; names in an expression, and
//! in a constant's own, may be of another file where only one has the name. `Caps.links` is a field of `impl Default
//! for Caps`. Constants are read from the source, since most are private.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::docs::{sources, tests_there_are};

/// The code, file by file.
struct Code(Vec<(String, String)>);

impl Code {
    fn read() -> Code {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        ["wire/src", "control/src", "dataplane/src", "node/src"]
            .iter()
            .for_each(|folder| sources(&root.join(folder), &mut files));
        let name = |file: &Path| file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        Code(files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect())
    }

    fn file(&self, name: &str) -> Result<&str, String> {
        let found = self.0.iter().find(|(file, _)| file == name);
        found.map(|(_, text)| text.as_str()).ok_or(format!("there is no file {name}"))
    }

    /// The expression of a constant: `file`'s own, or the one that has the name elsewhere, below the folder of its path
    /// if that begins with a crate: `wire::paced::AHEAD_MAX`.
    fn constant(&self, file: &str, path: &str) -> Result<(String, String), String> {
        let (folder, name) = path.rsplit_once("::").unwrap_or(("", path));
        let folder =
            folder.strip_prefix("wire::").map_or(String::new(), |of| format!("wire/src/{}", of.replace("::", "/")));
        let defined = |text: &str| {
            let (_, rest) = text.split_once(&format!("const {name}: "))?;
            let (_, value) = rest.split_once(" = ")?;
            Some(value.split(';').next()?.to_owned())
        };
        if let Some(value) = defined(self.file(file)?).filter(|_| folder.is_empty()) {
            return Ok((file.to_owned(), value));
        }
        let below = self.0.iter().filter(|(other, _)| other.starts_with(&folder));
        let mut all = below.filter_map(|(other, text)| Some((other.clone(), defined(text)?)));
        all.next().filter(|_| all.next().is_none()).ok_or(format!("{file} has no constant {name}"))
    }

    /// The values of an expression; times are in nanoseconds.
    fn value(&self, file: &str, expression: &str) -> Result<Vec<i128>, String> {
        if let Some((of, field)) = expression.split_once('.') {
            let default = format!("impl Default for {of} ");
            let (_, text) = self.file(file)?.split_once(&default).ok_or(format!("{file} has no `{default}`"))?;
            let (_, value) = text.split_once(&format!(" {field}: ")).ok_or(format!("{of} has no field {field}"))?;
            return self.parse(file, value.split('\n').next().unwrap().trim_end_matches(','));
        }
        let is_name = expression.chars().all(|c| c.is_alphanumeric() || c == '_');
        if is_name && !self.file(file)?.contains(&format!("const {expression}: ")) {
            return Err(format!("{file} has no constant {expression}"));
        }
        self.parse(file, expression)
    }

    fn parse(&self, file: &str, expression: &str) -> Result<Vec<i128>, String> {
        let mut parser = Parser { code: self, file, rest: expression };
        let value = parser.shift()?;
        if parser.rest.trim().is_empty() { Ok(value) } else { Err(format!("cannot read `{}`", parser.rest)) }
    }
}

/// A recursive descent over Rust's arithmetic of constants.
struct Parser<'a> {
    code: &'a Code,
    file: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, what: &str) -> bool {
        let rest = self.rest.trim_start();
        let eaten = rest.strip_prefix(what);
        self.rest = eaten.unwrap_or(rest);
        eaten.is_some()
    }

    fn word(&mut self) -> &str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).unwrap_or(rest.len());
        let word;
        (word, self.rest) = rest.split_at(end);
        word
    }

    fn shift(&mut self) -> Result<Vec<i128>, String> {
        let mut left = self.sum()?;
        while self.eat("<<") {
            left = vec![left[0] << self.sum()?[0]];
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Vec<i128>, String> {
        let mut left = self.product()?;
        loop {
            if self.eat("+") {
                left = vec![left[0] + self.product()?[0]];
            } else if self.eat("-") {
                left = vec![left[0] - self.product()?[0]];
            } else {
                return Ok(left);
            }
        }
    }

    fn product(&mut self) -> Result<Vec<i128>, String> {
        let mut left = self.primary()?;
        loop {
            if self.eat("*") {
                left = vec![left[0] * self.primary()?[0]];
            } else if self.eat("/") {
                left = vec![left[0] / self.primary()?[0]];
            } else if self.eat("as ") {
                self.word();
            } else {
                return Ok(left);
            }
        }
    }

    /// A number, a name, a call, or the fields of a struct.
    fn primary(&mut self) -> Result<Vec<i128>, String> {
        if self.eat("(") {
            let value = self.shift()?;
            return if self.eat(")") { Ok(value) } else { Err(format!("no `)` at `{}`", self.rest)) };
        }
        let word = self.word().to_owned();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let number = word.replace('_', "");
            return number.parse().map(|number| vec![number]).map_err(|_| format!("`{word}` is not a number"));
        }
        let name = word.rsplit("::").next().unwrap();
        if self.eat("(") {
            let mut arguments = Vec::new();
            while !self.eat(")") {
                arguments.extend(self.shift()?);
                self.eat(",");
            }
            let unit = match name {
                "from_secs" => 1_000_000_000,
                "from_millis" => 1_000_000,
                "from_micros" => 1_000,
                "new" | "per_second" => 1,
                _ => return Err(format!("cannot evaluate {name}()")),
            };
            return Ok(arguments.into_iter().map(|number| number * unit).collect());
        }
        if self.eat("{") {
            let mut fields = Vec::new();
            while !self.eat("}") {
                // The name with its colon.
                self.word();
                fields.extend(self.shift()?);
                self.eat(",");
            }
            return Ok(fields);
        }
        let (file, value) = self.code.constant(self.file, &word)?;
        self.code.parse(&file, &value)
    }
}

/// The numbers of a cell of the table: `65,536`, `2^16`, `250 ms`.
fn numbers(cell: &str) -> Vec<i128> {
    let words: Vec<&str> = cell.split(' ').map(|word| word.trim_end_matches(',')).collect();
    let mut numbers = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let word = word.replace(',', "");
        let number: Option<i128> = match word.split_once('^') {
            Some((base, power)) => {
                base.parse::<i128>().ok().zip(power.parse().ok()).map(|(base, power)| base.pow(power))
            }
            None => word.parse().ok(),
        };
        let unit = match words.get(at + 1) {
            Some(&"us") => 1_000,
            Some(&"ms") => 1_000_000,
            Some(&"s") => 1_000_000_000,
            _ => 1,
        };
        numbers.extend(number.map(|number| number * unit));
    }
    numbers
}

/// The parts of a cell in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn limits_match_their_constants() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/LIMITS.md")).unwrap();
    let (code, tests) = (Code::read(), tests_there_are());
    let config: String =
        code.0.iter().filter(|(file, _)| file.starts_with("node/src/config")).map(|(_, text)| text.as_str()).collect();
    let (mut checked, mut bounds, mut wrong) = (0, HashSet::new(), Vec::new());
    for line in document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [bound, value, _, keys, constants, held_by] = cells[..] else {
            wrong.push(format!("not six columns: {line}"));
            continue;
        };
        if bound == "bound" {
            continue;
        }
        if !bounds.insert(bound) {
            wrong.push(format!("twice: {bound}"));
        }
        let (mut file, mut values) = ("", Vec::new());
        for word in quoted(constants) {
            if word.ends_with(".rs") {
                file = word;
            } else {
                match code.value(file, word) {
                    Ok(more) => values.extend(more),
                    Err(why) => wrong.push(format!("{bound}: {why}")),
                }
            }
        }
        if !values.is_empty() {
            checked += 1;
            if values != numbers(value) {
                wrong.push(format!("{bound}: docs/LIMITS.md says {value}, the code {values:?}"));
            }
        }
        for key in quoted(keys).filter(|key| !key.contains([' ', '-'])) {
            if !config.contains(key) {
                wrong.push(format!("{bound}: no such key: {key}"));
            }
        }
        for test in quoted(held_by).filter(|test| !tests.contains(*test)) {
            wrong.push(format!("{bound}: no such test: {test}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 60, "{checked} rows were checked");
}
