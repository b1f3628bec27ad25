import './base.css';
import './panel.css';
import './answer.css';
import './notebook.css';
