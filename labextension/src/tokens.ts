/** The contract of the front end: plain values, and the tokens under which our plugins find each other. */
import { Token } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';

export const PLUGIN = 'jupyter-gemma:plugin';

/** Command ids. */
export const Commands = {
  open: 'jupyter-gemma:open',
  newChat: 'jupyter-gemma:new-conversation',
  stop: 'jupyter-gemma:stop',
  explainOutput: 'jupyter-gemma:explain-output',
  askOutput: 'jupyter-gemma:ask-output',
  transcribeOutput: 'jupyter-gemma:transcribe-output',
  summariseOutput: 'jupyter-gemma:summarise-output',
  fixError: 'jupyter-gemma:fix-error',
  removeAnswer: 'jupyter-gemma:remove-answer',
  moveAnswer: 'jupyter-gemma:move-answer-to-markdown',
  editCell: 'jupyter-gemma:edit-cell',
  generateCell: 'jupyter-gemma:generate-cell',
  askCell: 'jupyter-gemma:ask-cell',
  load: 'jupyter-gemma:load-model',
  unload: 'jupyter-gemma:unload-model',
  stopServer: 'jupyter-gemma:stop-server',
  pull: 'jupyter-gemma:pull-model',
  log: 'jupyter-gemma:show-log',
  doctor: 'jupyter-gemma:run-doctor',
  serverMenu: 'jupyter-gemma:server-menu',
  remote: 'jupyter-gemma:set-remote-server'
} as const;

// -- the wire (jupyter_gemma/types.py) ---------------------------------------------------------------------------

export type Modality = 'text' | 'image' | 'audio';
export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'cancelled';

/** Tokens by modality, and seconds. */
export interface IUsage {
  text_tokens: number;
  image_tokens: number;
  audio_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  prefill_seconds: number;
  decode_seconds: number;
}

export interface IProgress {
  phase: string;
  done: number;
  total: number;
}

export interface IToolCall {
  name: string;
  arguments: Record<string, unknown>;
  id: string;
}

/** One piece of an answer: text and thinking are deltas. */
export interface IChunk {
  text?: string;
  thinking?: string;
  tool_call?: IToolCall;
  progress?: IProgress;
  finish?: FinishReason;
  usage?: IUsage;
}

/** What users of a model must know. */
export interface ICard {
  name: string;
  title: string;
  notice: string;
  modalities: Modality[];
  instruct: boolean;
  turns: boolean;
  extras: boolean;
  prompts: Record<string, string>;
  table_form: 'digest' | 'columns';
}

export type ServerState =
  'unknown' | 'stopped' | 'empty' | 'loading' | 'ready' | 'busy' | 'error' | 'remote' | 'stopping' | 'missing';

/** What the model server does; fields beside `state` and `model` come from newer servers. */
export interface IServerStatus {
  state: ServerState;
  model: string;
  progress?: IProgress | null;
  queue?: number;
  error?: { message: string; fix?: string } | null;
  url?: string;
  memory_bytes?: number;
  engine?: { tokens_per_second: number } | null;
}

export type ContentPart =
  | { type: 'text'; text: string }
  | { type: 'image_url'; image_url: { url: string } }
  | { type: 'input_audio'; input_audio: { data: string; format: string } };

export interface IWireMessage {
  role: 'system' | 'user' | 'assistant';
  content: string | ContentPart[];
}

/** A body of `POST chat`. */
export interface IQuestion {
  messages: IWireMessage[];
  model?: string;
  temperature?: number;
  max_tokens?: number;
  seed?: number;
  thinking?: boolean;
  image_tokens?: number;
}

/** The exact prompt that a question becomes, and its tokens. */
export interface IRendered extends Pick<IUsage, 'text_tokens' | 'image_tokens' | 'audio_tokens'> {
  prompt: string;
}

// -- conversations -----------------------------------------------------------------------------------------------

/** Something that goes with a question. `data` is base64 of a picture or clip, `text` everything else. */
export interface IAttachment {
  id: string;
  kind: 'image' | 'audio' | 'text' | 'table';
  name: string;
  note: string;
  mime?: string;
  data?: string;
  text?: string;
}

export interface IAnswer {
  text: string;
  thinking: string;
  model: string;
  notice: string;
  finish?: FinishReason;
  usage?: IUsage;
  error?: { message: string; fix: string };
}

/** A question and its answers: one, and one more for each Regenerate. */
export interface IExchange {
  id: string;
  text: string;
  attachments: IAttachment[];
  answers: IAnswer[];
  shown: number;
}

export interface ISummary {
  id: string;
  title: string;
  updated: number;
  revision: number;
}

export interface IConversation extends ISummary {
  exchanges: IExchange[];
}

/** What the user chose; see schema/plugin.json. */
export interface ISettings {
  systemPrompt: string;
  imageTokens: number;
  rows: number;
  thinking: boolean;
  temperature: number | null;
  maxTokens: number;
  autoExplain: boolean;
  inlineCompletion: boolean;
  microphone: 'dictate' | 'attach';
}

// -- what the plugins give each other ----------------------------------------------------------------------------

/** Where questions go; `api.ts` is the real one. */
export interface IApi {
  chat(question: IQuestion, signal?: AbortSignal): AsyncGenerator<IChunk>;
  models(): Promise<{ models: ICard[]; model: string }>;
  status(): Promise<{ version: string; command: string; server: IServerStatus }>;
  load(model: string, onProgress: (progress: IProgress) => void): Promise<void>;
  unload(): Promise<void>;
  stopServer(): Promise<void>;
  render(question: IQuestion): Promise<IRendered>;
  remote(): Promise<{ base_url: string; has_key: boolean }>;
  setRemote(baseUrl: string, key: string | null): Promise<void>;
  conversations(search: string): Promise<ISummary[]>;
  conversation(id: string): Promise<IConversation>;
  saveConversation(conversation: IConversation): Promise<ISummary>;
  deleteConversation(id: string): Promise<void>;
}

/** The state of the model server and its models, kept fresh while somebody looks. */
export interface IServer {
  readonly status: IServerStatus;
  readonly command: string;
  readonly mismatch: string;
  readonly models: ICard[];
  readonly changed: ISignal<IServer, void>;
  /** Card of the model that is asked; starts the server if there is none. */
  card(): Promise<ICard>;
  /** Card of the model in memory, or chosen; null while none is known. */
  readonly resident: ICard | null;
  choose(model: string): void;
  readonly chosen: string;
  refresh(): Promise<void>;
  /** Seconds between two looks become fewer while something happens. */
  watch(): void;
  load(model: string): Promise<void>;
}

/** What the core plugin offers the others. */
export interface IGemma {
  readonly api: IApi;
  readonly server: IServer;
  readonly settings: ISettings;
  readonly settingsChanged: ISignal<IGemma, ISettings>;
}

/** The chat panel, as others use it. */
export interface IGemmaPanel {
  /** Open the panel with attachments in the composer, and the caret in it. */
  compose(attachments: IAttachment[], text?: string): void;
}

export const IGemma = new Token<IGemma>('jupyter-gemma:IGemma', 'Questions to the local Gemma model.');
export const IGemmaPanel = new Token<IGemmaPanel>('jupyter-gemma:IGemmaPanel', 'The chat panel.');
