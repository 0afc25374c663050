//! oslo.policy's rule language to a tree.

/// A parsed rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `@` or the empty rule.
    Always,
    /// `!`.
    Never,
    /// `not x`.
    Not(Box<Expr>),
    /// `x and y`.
    All(Vec<Expr>),
    /// `x or y`.
    Any(Vec<Expr>),
    /// `rule:name`.
    Rule(String),
    /// `role:name`, lower-case.
    Role(Template),
    /// `attribute:value`: an attribute of the caller against a value.
    Caller(String, Template),
    /// `'literal':value`.
    Literal(String, Template),
}

/// The right side of a check: text, or one `%(key)s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// As it is.
    Text(String),
    /// The target's attribute.
    Key(String),
}

impl Expr {
    /// Names of the rules it refers to.
    pub fn references(&self) -> Vec<&str> {
        match self {
            Expr::Rule(name) => vec![name],
            Expr::Not(inner) => inner.references(),
            Expr::All(items) | Expr::Any(items) => items.iter().flat_map(Expr::references).collect(),
            _ => Vec::new(),
        }
    }
}

/// Nesting of a rule; far above what anybody writes, far below what a stack takes.
const MAX_DEPTH: usize = 64;
/// Length of a rule in bytes.
const MAX_LENGTH: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Check(Expr),
}

/// Parses one rule.
pub(crate) fn parse(text: &str) -> Result<Expr, String> {
    if text.len() > MAX_LENGTH {
        return Err("is too long".into());
    }
    if text.trim().is_empty() {
        return Ok(Expr::Always);
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.any()?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => Err("has something after its end".into()),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn any(&mut self) -> Result<Expr, String> {
        let mut items = vec![self.all()?];
        while self.peek() == Some(&Token::Or) {
            self.at += 1;
            items.push(self.all()?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::Any(items) })
    }

    fn all(&mut self) -> Result<Expr, String> {
        let mut items = vec![self.one()?];
        while self.peek() == Some(&Token::And) {
            self.at += 1;
            items.push(self.one()?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::All(items) })
    }

    fn one(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("is nested too deep".into());
        }
        let expr = match self.take() {
            Some(Token::Check(expr)) => Ok(expr),
            Some(Token::Not) => Ok(Expr::Not(Box::new(self.one()?))),
            Some(Token::Open) => {
                let inner = self.any()?;
                if self.take() == Some(Token::Close) { Ok(inner) } else { Err("lacks a ')'".into()) }
            }
            Some(Token::Close) => Err("has a ')' too many".into()),
            Some(Token::And | Token::Or) => Err("has an 'and' or 'or' with nothing before it".into()),
            None => Err("ends too early".into()),
        };
        self.depth -= 1;
        expr
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut all = Vec::new();
    for word in text.split_whitespace() {
        let inner = word.trim_start_matches('(');
        all.extend(std::iter::repeat_n(Token::Open, word.len() - inner.len()));
        let (check, closing) = split_closing(inner);
        match check.to_ascii_lowercase().as_str() {
            "" => {}
            "and" => all.push(Token::And),
            "or" => all.push(Token::Or),
            "not" => all.push(Token::Not),
            _ => all.push(Token::Check(check_of(check)?)),
        }
        all.extend(std::iter::repeat_n(Token::Close, closing));
    }
    Ok(all)
}

/// Closing parentheses at the end of a word, save those of `%(key)` (an `s` follows them, so they never end a word).
fn split_closing(word: &str) -> (&str, usize) {
    let check = word.trim_end_matches(')');
    (check, word.len() - check.len())
}

fn check_of(text: &str) -> Result<Expr, String> {
    match text {
        "@" => return Ok(Expr::Always),
        "!" => return Ok(Expr::Never),
        _ => {}
    }
    let (left, right) = split_check(text).ok_or_else(|| format!("'{text}' is no check"))?;
    match left {
        "rule" => Ok(Expr::Rule(right.to_owned())),
        "role" => Ok(Expr::Role(match template(right)? {
            Template::Text(name) => Template::Text(name.to_lowercase()),
            key @ Template::Key(_) => key,
        })),
        "http" | "https" => Err(format!("'{text}': checks by HTTP are not supported")),
        "field" => Err(format!("'{text}': field checks are not supported; set an attribute instead")),
        "" => Err(format!("'{text}' is no check")),
        _ => {
            let right = template(right)?;
            Ok(match literal(left) {
                Some(value) => Expr::Literal(value, right),
                None => Expr::Caller(left.to_owned(), right),
            })
        }
    }
}

/// Splits at the first `:` outside quotes.
fn split_check(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| *c == '\'' || *c == '"');
    match quote {
        None => text.split_once(':'),
        Some(quote) => {
            let end = text.get(1..)?.find(quote)? + 2;
            Some((text.get(..end)?, text.get(end..)?.strip_prefix(':')?))
        }
    }
}

/// A literal as Python reads it: quoted text, True, False, None, a number.
fn literal(text: &str) -> Option<String> {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return Some(inner.to_owned());
        }
    }
    let number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number || ["True", "False", "None"].contains(&text)).then(|| text.to_owned())
}

fn template(text: &str) -> Result<Template, String> {
    match text.strip_prefix("%(") {
        Some(rest) => match rest.strip_suffix(")s") {
            Some(key) if !key.is_empty() && !key.contains("%(") => Ok(Template::Key(key.to_owned())),
            _ => Err(format!("'{text}' is no '%(key)s'")),
        },
        None if text.contains("%(") => Err(format!("'{text}' mixes text and '%(key)s'")),
        None => Ok(Template::Text(literal(text).unwrap_or_else(|| text.to_owned()))),
    }
}
