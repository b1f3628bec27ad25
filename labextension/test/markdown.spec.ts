import { describe, expect, it } from 'vitest';
import { blocksOf, codeOf, fenced, firstCode, harmless } from '../src/markdown';

describe('harmless', () => {
  it.each([
    ['![a](https://x/y.png)', '[a](https://x/y.png)'],
    ['![a][b]', '[a][b]'],
    ['<img src=x onerror=alert(1)>', '< img src=x onerror=alert(1)>'],
    ['a <script>b</script>', 'a < script>b< /script>'],
    ['a < b and c <3', 'a < b and c <3'],
    ['```\n<b>![x](y)\n```', '```\n<b>![x](y)\n```'],
    ['- ```\n<b>', '- ```\n< b>'],
    ['$a\n```\n<b>', '$a\n```\n< b>'],
    ['```\n<b>\n```\n<i>', '```\n<b>\n```\n< i>']
  ])('%j', (text, wanted) => {
    expect(harmless(text)).toBe(wanted);
  });
});

describe('blocksOf', () => {
  it.each([
    ['a\n\nb', ['a', 'b']],
    ['a\nb', ['a\nb']],
    ['```\na\n\nb\n```\n\nc', ['```\na\n\nb\n```', 'c']],
    ['- a\n\n- b\n\n  c', ['- a\n\n- b\n\n  c']],
    ['1. a\n\n2. b', ['1. a\n\n2. b']],
    ['$$\na\n\nb\n$$\n\nc', ['$$\na\n\nb\n$$', 'c']],
    ['```\na\n```\n\n- b', ['```\na\n```', '- b']],
    ['- a\n\nb', ['- a', 'b']],
    ['', []]
  ])('%j', (text, wanted) => {
    expect(blocksOf(text)).toEqual(wanted);
  });

  it('changes only the last block of a growing text', () => {
    const text = '# Title\n\nSome words.\n\n```python\nx = 1\n\ny = 2\n```\n\n- one\n- two\n\nThe end.';
    let before: string[] = [];
    for (let end = 1; end <= text.length; end++) {
      const blocks = blocksOf(text.slice(0, end));
      expect(blocks.slice(0, before.length - 1)).toEqual(before.slice(0, -1));
      before = blocks;
    }
    expect(before).toHaveLength(5);
  });
});

describe('code', () => {
  it('is found with its language', () => {
    expect(codeOf('```python\nx = 1\n```')).toEqual({ language: 'python', source: 'x = 1' });
    expect(codeOf('```\nx')).toEqual({ language: '', source: 'x' });
    expect(codeOf('text')).toBeNull();
    expect(codeOf('```\nx\n```\nmore')).toBeNull();
  });

  it('is the first block, else the whole answer', () => {
    expect(firstCode('Here:\n```python\na\nb\n```\nand\n```\nc\n```')).toBe('a\nb');
    expect(firstCode(' x = 1 ')).toBe('x = 1');
  });

  it('survives a fence', () => {
    const source = 'text = """\n```\n"""';
    expect(firstCode(fenced(source, 'python'))).toBe(source);
  });
});
