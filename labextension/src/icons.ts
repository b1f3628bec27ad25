/** Our icons, drawn for 24 x 24 and coloured by the theme. */
import { LabIcon } from '@jupyterlab/ui-components';

function icon(name: string, paths: string): LabIcon {
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">${paths}</svg>`;
  return new LabIcon({ name: `jupyter-gemma:${name}`, svgstr: svg });
}

const filled = (path: string) => `<path class="jp-icon3" fill="#616161" d="${path}"/>`;
const drawn = (path: string) =>
  `<path class="jp-icon3" fill="none" stroke="#616161" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" d="${path}"/>`;

const lines = (path: string) => drawn(path).replace('class="jp-icon3" fill', 'class="jg-line" fill');

export const gemmaIcon = icon(
  'gemma',
  filled('M12 2c.9 5.6 4.4 9.1 10 10-5.6.9-9.1 4.4-10 10-.9-5.6-4.4-9.1-10-10 5.6-.9 9.1-4.4 10-10z')
);
export const sendIcon = icon('send', lines('M12 19V5M6 11l6-6 6 6'));
export const stopIcon = icon('stop', filled('M7 7h10v10H7z'));
export const microphoneIcon = icon(
  'microphone',
  lines('M12 3a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0V6a3 3 0 0 1 3-3zM5.5 11a6.5 6.5 0 0 0 13 0M12 17.5V21')
);
export const attachIcon = icon(
  'attach',
  lines('M20 11.5l-8.2 8.2a5 5 0 0 1-7-7l8.2-8.2a3.3 3.3 0 0 1 4.7 4.7l-8.2 8.2a1.7 1.7 0 0 1-2.4-2.4l7.5-7.5')
);
export const historyIcon = icon('history', lines('M4 6h16M4 12h16M4 18h10'));
export const soundIcon = icon('sound', lines('M4 10v4M8 7v10M12 4v16M16 7v10M20 10v4'));
export const explainIcon = gemmaIcon;
export const wrenchIcon = icon(
  'wrench',
  lines('M14.5 6.5a4 4 0 0 1 5-1l-2.6 2.6 1.9 1.9 2.6-2.6a4 4 0 0 1-5.3 5L8 20.5 4.5 17l8.6-8.1a4 4 0 0 1 1.4-2.4z')
);
export const askIcon = icon('ask', lines('M4 5h16v11H9l-5 4z'));
export const tableIcon = icon('table', lines('M4 5h16v14H4zM4 10h16M10 5v14'));
export const toMarkdownIcon = icon(
  'to-markdown',
  lines('M3 6h18v12H3zM6.5 15V9l3 3.5 3-3.5v6M17 9v6M14.8 12.8L17 15l2.2-2.2')
);
export const replaceIcon = icon('replace', lines('M4 8h13l-3.5-3.5M20 16H7l3.5 3.5'));
export const newNotebookIcon = icon('new-notebook', lines('M6 3h12v18H6zM12 9v6M9 12h6'));
