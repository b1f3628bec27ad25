/** All plugins; each stands in a file of its own. */
import { cellsPlugin } from './plugins/cells';
import { completionPlugin } from './plugins/completion';
import { corePlugin } from './plugins/core';
import { insertionPlugin } from './plugins/insertion';
import { outputsPlugin } from './plugins/outputs';
import { palettePlugin } from './plugins/palette';
import { panelPlugin } from './plugins/panel';
import { serverPlugin } from './plugins/server';
import { statusPlugin } from './plugins/status';

export default [
  corePlugin,
  panelPlugin,
  serverPlugin,
  outputsPlugin,
  cellsPlugin,
  insertionPlugin,
  statusPlugin,
  completionPlugin,
  palettePlugin
];
