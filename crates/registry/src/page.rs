//! A page as data, written as Markdown, as a fragment of HTML, or as a whole page of HTML.
//!
//! Whatever stands in a page goes through here: texts are escaped in one place, for each form its own way.

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use base::{Error, Result};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:#1b1b1b;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}table{border-collapse:collapse;width:100%;margin:1rem 0}\
td,th{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #ddd}th{background:#f5f5f5}\
code,pre{font-size:.92em}pre{overflow:auto;background:#f5f5f5;padding:.6rem}nav{margin-bottom:1rem}";

/// In which form a page is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// `text/markdown`.
    Markdown,
    /// HTML to put into another page.
    Fragment,
    /// HTML.
    Page,
}

impl View {
    /// Of its name in a path.
    ///
    /// # Errors
    /// `Unprocessable` for any other, as upstream answers.
    pub fn of(name: &str) -> Result<Self> {
        match name {
            "markdown" => Ok(View::Markdown),
            "fragment" => Ok(View::Fragment),
            "page" => Ok(View::Page),
            _ => Err(Error::unprocessable("view_type: markdown, fragment or page is wanted.")),
        }
    }
}

/// A piece of a line.
#[derive(Debug, Clone)]
pub enum Inline {
    /// Text.
    Text(String),
    /// Text that stands out.
    Strong(String),
    /// Code.
    Code(String),
    /// A place that links can lead to.
    Anchor(String),
    /// A link: text, URL, what is shown over it.
    Link(String, String, String),
}

impl From<&str> for Inline {
    fn from(text: &str) -> Self {
        Inline::Text(text.to_owned())
    }
}

impl From<String> for Inline {
    fn from(text: String) -> Self {
        Inline::Text(text)
    }
}

/// A link.
pub fn link(text: impl Into<String>, url: impl Into<String>) -> Inline {
    Inline::Link(text.into(), url.into(), String::new())
}

/// A line.
pub type Line = Vec<Inline>;

/// A line of one text.
pub fn line(text: impl Into<Inline>) -> Line {
    vec![text.into()]
}

/// A part of a page.
#[derive(Debug, Clone)]
pub enum Block {
    /// A heading of level 2 or 3, with an anchor.
    Heading(u8, String, String),
    /// A paragraph.
    Paragraph(Line),
    /// A list.
    List(Vec<Line>),
    /// A table: head and rows.
    Table(Vec<Line>, Vec<Vec<Line>>),
    /// Text as it is; with a title it can be folded away.
    Text(Option<String>, String),
}

/// A page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// Its parts.
    pub blocks: Vec<Block>,
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Page { title: title.into(), blocks: Vec::new() }
    }

    /// Adds a heading.
    pub fn heading(&mut self, level: u8, text: impl Into<String>, anchor: impl Into<String>) {
        self.blocks.push(Block::Heading(level, text.into(), anchor.into()));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, line: Line) {
        self.blocks.push(Block::Paragraph(line));
    }

    /// Adds a table.
    pub fn table(&mut self, head: &[&str], rows: Vec<Vec<Line>>) {
        self.blocks.push(Block::Table(head.iter().map(|h| line(*h)).collect(), rows));
    }

    /// The answer in a form.
    pub fn answer(&self, view: View, home: &str) -> Response {
        let (kind, text) = match view {
            View::Markdown => ("text/markdown; charset=utf-8", self.markdown()),
            View::Fragment => ("text/html; charset=utf-8", self.fragment()),
            View::Page => ("text/html; charset=utf-8", self.html(home)),
        };
        // Nothing in a page runs or is loaded, even if something should ever get through the escaping.
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
        let headers =
            [(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, policy), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (headers, text).into_response()
    }

    fn html(&self, home: &str) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>{0}</title><style>{STYLE}</style></head><body><nav><a href=\"{1}page/table\">Overview</a> · \
             <a href=\"{1}page/certificates\">Certificates</a></nav><h1>{0}</h1>\n{2}</body></html>\n",
            escaped(&self.title),
            escaped(home),
            self.fragment(),
        )
    }

    fn fragment(&self) -> String {
        let mut out = String::new();
        for block in &self.blocks {
            match block {
                Block::Heading(level, text, anchor) => out.push_str(&format!(
                    "<h{level} id=\"{}\">{}</h{level}>\n",
                    escaped(anchor),
                    escaped(text)
                )),
                Block::Paragraph(line) => out.push_str(&format!("<p>{}</p>\n", html(line))),
                Block::List(items) => {
                    let items: String = items.iter().map(|i| format!("<li>{}</li>\n", html(i))).collect();
                    out.push_str(&format!("<ul>\n{items}</ul>\n"));
                }
                Block::Table(head, rows) => {
                    let cells = |line: &[Line], tag: &str| -> String {
                        line.iter().map(|cell| format!("<{tag}>{}</{tag}>", html(cell))).collect()
                    };
                    out.push_str(&format!("<table><tr>{}</tr>\n", cells(head, "th")));
                    for row in rows {
                        out.push_str(&format!("<tr>{}</tr>\n", cells(row, "td")));
                    }
                    out.push_str("</table>\n");
                }
                Block::Text(None, text) => out.push_str(&format!("<pre>{}</pre>\n", escaped(text))),
                Block::Text(Some(title), text) => out.push_str(&format!(
                    "<details><summary>{}</summary><pre>{}</pre></details>\n",
                    escaped(title),
                    escaped(text)
                )),
            }
        }
        out
    }

    fn markdown(&self) -> String {
        let mut out = String::new();
        for block in &self.blocks {
            match block {
                Block::Heading(level, text, _) => {
                    out.push_str(&format!("{} {}\n\n", "#".repeat(usize::from(*level)), literal(text)));
                }
                Block::Paragraph(line) => out.push_str(&format!("{}\n\n", markdown(line))),
                Block::List(items) => {
                    for item in items {
                        out.push_str(&format!("- {}\n", markdown(item)));
                    }
                    out.push('\n');
                }
                Block::Table(head, rows) => {
                    let row = |cells: &[Line]| -> String {
                        cells.iter().map(|c| format!("| {} ", markdown(c))).collect::<String>() + "|\n"
                    };
                    out.push_str(&row(head));
                    out.push_str(&format!("{}|\n", "|---".repeat(head.len())));
                    rows.iter().for_each(|r| out.push_str(&row(r)));
                    out.push('\n');
                }
                Block::Text(title, text) => {
                    if let Some(title) = title {
                        out.push_str(&format!("{}:\n\n", literal(title)));
                    }
                    // Indented, so that nothing in the text can end it.
                    text.lines().for_each(|l| out.push_str(&format!("    {l}\n")));
                    out.push('\n');
                }
            }
        }
        out
    }
}

/// For HTML, in text and in attributes.
pub fn escaped(text: &str) -> String {
    let replaced = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    replaced.replace('"', "&quot;").replace('\'', "&#39;")
}

/// For Markdown: nothing in it means anything.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

fn safe(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://") || url.starts_with('/') || url.starts_with('#')
}

fn html(line: &[Inline]) -> String {
    let one = |inline: &Inline| match inline {
        Inline::Text(text) => escaped(text),
        Inline::Anchor(name) => format!("<a id=\"{}\"></a>", escaped(name)),
        Inline::Strong(text) => format!("<strong>{}</strong>", escaped(text)),
        Inline::Code(text) => format!("<code>{}</code>", escaped(text)),
        Inline::Link(text, url, _) if !safe(url) => escaped(text),
        Inline::Link(text, url, title) if title.is_empty() => {
            format!("<a href=\"{}\">{}</a>", escaped(url), escaped(text))
        }
        Inline::Link(text, url, title) => {
            format!("<a href=\"{}\" title=\"{}\">{}</a>", escaped(url), escaped(title), escaped(text))
        }
    };
    line.iter().map(one).collect()
}

fn markdown(line: &[Inline]) -> String {
    let one = |inline: &Inline| match inline {
        Inline::Text(text) => literal(text),
        Inline::Anchor(_) => String::new(),
        Inline::Strong(text) => format!("**{}**", literal(text)),
        Inline::Code(text) => format!("`{}`", text.replace(['`', '|', '\n', '\r'], " ")),
        Inline::Link(text, url, _) if safe(url) => {
            let url = url.replace(')', "%29").replace('|', "%7C").replace(['<', '>', ' '], "");
            format!("[{}]({url})", literal(text))
        }
        Inline::Link(text, ..) => literal(text),
    };
    line.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_through() {
        let mut page = Page::new("<script>");
        let evil = "<img src=x onerror=\"x\">|`*[a](javascript:x)";
        page.heading(2, evil, "\"><b>");
        page.paragraph(vec![evil.into(), Inline::Strong(evil.into())]);
        page.paragraph(vec![Inline::Code("<b> ` | x".into())]);
        page.paragraph(vec![link(evil, "javascript:alert(1)"), link("fine", "https://e/\"><b>")]);
        page.table(&["a|b"], vec![vec![line(evil)]]);
        page.blocks.push(Block::Text(Some(evil.into()), "```\n<b>\n".into()));
        let whole = page.html("/");
        for tag in ["<img", "<b>", "<script", "href=\"javascript"] {
            assert!(!whole.contains(tag), "{tag}: {whole}");
        }
        let text = page.markdown();
        assert!(
            text.contains("\\|\\`\\*\\[a\\]") && !text.replace("\\]", "").contains("](javascript"),
            "{text}"
        );
        assert!(text.lines().filter(|l| l.contains("<b>")).all(|l| l.starts_with("    ") || l.contains('`')));
    }
}
