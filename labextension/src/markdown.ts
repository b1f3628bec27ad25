/** A model's Markdown: made harmless, cut into blocks that are rendered once, and searched for code. Pure. */

// A model may repeat what stands in a web page or a file, so its Markdown is foreign input. Outside of code blocks
// pictures lose their mark and tags get a space, which ends them in Markdown and HTML alike. The twin of
// jupyter_gemma/notebook/harmless.py.
const FENCE = /^(`{3,}|~{3,})[^`]*$/;
const CLOSING = /^ {0,3}(`{3,}|~{3,})\s*$/;
const UNCERTAIN = /^[\s>*+\-\d.)]+(```|~~~)|\$\$|\\\[|\\begin\b/;
const ITEM = /^\s*([-*+>]|\d+[.)])(\s|$)/;
const TAG = /<(?=[A-Za-z/!?])/g;

/** `text` without pictures and raw HTML; links stay, they load only when clicked. */
export function harmless(text: string): string {
  let fence = '';
  let certain = true;
  return text
    .split('\n')
    .map(line => {
      if (fence) {
        fence = closes(line, fence) ? '' : fence;
        return line;
      }
      certain = certain && !UNCERTAIN.test(line) && (line.match(/\$/g) ?? []).length % 2 === 0;
      const opening = FENCE.exec(line);
      if (opening && certain) {
        fence = opening[1];
        return line;
      }
      return line.split('![').join('[').replace(TAG, '< ');
    })
    .join('\n');
}

function closes(line: string, fence: string): boolean {
  return CLOSING.exec(line)?.[1].startsWith(fence) ?? false;
}

/**
 * `text` cut where a blank line ends a paragraph, table, heading or code block, so that a growing answer changes its
 * last block only. Lists, quotes and formulas are not cut.
 */
export function blocksOf(text: string): string[] {
  const blocks: string[][] = [[]];
  let fence = '';
  let formula = false;
  const lines = text.split('\n');
  lines.forEach((line, index) => {
    const block = blocks[blocks.length - 1];
    if (!fence && !formula && line.trim() === '' && endsBefore(block, lines[index + 1])) {
      blocks.push([]);
      return;
    }
    block.push(line);
    if (!formula) {
      fence = fence ? (closes(line, fence) ? '' : fence) : (FENCE.exec(line)?.[1] ?? '');
    }
    if (!fence && (line.match(/\$\$/g) ?? []).length % 2) {
      formula = !formula;
    }
  });
  return blocks.map(block => block.join('\n')).filter(block => block.trim() !== '');
}

/** Whether a block is complete at a blank line that `next` follows. Items of a list stay together. */
function endsBefore(block: string[], next: string | undefined): boolean {
  if (!block.some(line => line.trim() !== '') || !next?.trim()) {
    return false;
  }
  return !ITEM.test(block[0]) || !(ITEM.test(next) || /^\s|^\d+$/.test(next));
}

export interface ICode {
  language: string;
  source: string;
}

/** The fenced code of a block that is nothing else; null for any other block. */
export function codeOf(block: string): ICode | null {
  const lines = block.split('\n');
  const opening = /^(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/.exec(lines[0]);
  if (!opening) {
    return null;
  }
  const end = lines.findIndex((line, index) => index > 0 && closes(line, opening[1]));
  if (end >= 0 && lines.slice(end + 1).some(line => line.trim() !== '')) {
    return null;
  }
  return { language: opening[2], source: lines.slice(1, end < 0 ? undefined : end).join('\n') };
}

/** The first code block of an answer, or the whole answer where there is none. */
export function firstCode(text: string): string {
  const lines = text.split('\n');
  const start = lines.findIndex(line => FENCE.test(line));
  if (start < 0) {
    return text.trim();
  }
  const fence = (FENCE.exec(lines[start]) as RegExpExecArray)[1];
  const end = lines.findIndex((line, index) => index > start && closes(line, fence));
  return lines.slice(start + 1, end < 0 ? undefined : end).join('\n');
}

/** Text that stands in Markdown as it is, in a fence that it does not contain. */
export function fenced(text: string, language = ''): string {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map(run => run.length));
  const fence = '`'.repeat(longest + 1);
  return `${fence}${language}\n${text}\n${fence}`;
}
