import { describe, expect, it } from 'vitest';
import { commandOf, matching, mentionsIn, triggerAt, withoutSigns } from '../src/mentions';

const texts = (text: string) => mentionsIn(text).map(mention => mention.text);

describe('mentionsIn', () => {
  it.each([
    ['Look at @df.', ['@df']],
    ['@df, @other and @df again', ['@df', '@other']],
    ['@cell:3 and @output:12', ['@cell:3', '@output:12']],
    ['read @file:data/a-b.csv please', ['@file:data/a-b.csv']],
    ['(@selection)', ['@selection']],
    ['@df.groupby', ['@df.groupby']],
    ['@rows[0]', ['@rows[0]']],
    ['me@example.org', []],
    ['`@df` and ```\n@decorator\n```', []],
    ['@ 3', []],
    ['', []]
  ])('%s', (text, wanted) => {
    expect(texts(text)).toEqual(wanted);
  });

  it('tells the kinds apart', () => {
    expect(mentionsIn('@df @cell:3 @output:4 @notebook @file:a.png').map(mention => mention.kind)).toEqual([
      'variable',
      'cell',
      'output',
      'notebook',
      'file'
    ]);
    expect(mentionsIn('@cell:3')[0]).toMatchObject({ number: 3 });
    expect(mentionsIn('@file:a/b.png')[0]).toMatchObject({ path: 'a/b.png' });
  });
});

describe('withoutSigns', () => {
  it('keeps names or drops them', () => {
    const text = 'Which column of @df is text?';
    expect(withoutSigns(text, mentionsIn(text), false)).toBe('Which column of df is text?');
    expect(withoutSigns('@df Which columns are text?', mentionsIn('@df'), true)).toBe('Which columns are text?');
  });
});

describe('triggerAt', () => {
  it.each([
    ['@', 1, { sign: '@', query: '', from: 0 }],
    ['see @d', 6, { sign: '@', query: 'd', from: 4 }],
    ['see @df and', 6, { sign: '@', query: 'd', from: 4 }],
    ['@file:da', 8, { sign: '@', query: 'file:da', from: 0 }],
    ['/ex', 3, { sign: '/', query: 'ex', from: 0 }],
    ['a /ex', 5, null],
    ['me@x', 4, null],
    ['@df ', 4, null]
  ])('%s at %d', (text, caret, wanted) => {
    expect(triggerAt(text, caret)).toEqual(wanted);
  });
});

describe('commandOf', () => {
  it('splits a command from the rest', () => {
    expect(commandOf('/explain')).toEqual({ name: 'explain', rest: '' });
    expect(commandOf(' /explain @fig now\nplease ')).toEqual({ name: 'explain', rest: '@fig now\nplease' });
    expect(commandOf('what is /explain')).toBeNull();
    expect(commandOf('/usr/bin is a folder')).toBeNull();
  });
});

describe('matching', () => {
  it('puts names that begin so first', () => {
    expect(matching(['my_df', 'df', 'x'], 'DF', name => name)).toEqual(['df', 'my_df']);
  });
});
